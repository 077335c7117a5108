"""The format of every stage: that of the store, or float32 whatever the store is.   Spec 6.7"""

# Stages that stay float32 when the store is narrower; every other stage has the format of the store.   Spec 6.7
FLOAT32_STAGES = frozenset(
    """coin priority logits scores choice_scores group_scores raw_topk_weights topk_weights selection_bias lse margin
    row_potentials column_potentials second_choice_scores
    multipliers
    losses.balance losses.z losses.importance d_losses
    losses.load d_logits_load d_clean_logits_load d_noise_std_load
    d_logits d_logits_task d_logits_balance d_logits_importance d_logits_z d_scores d_topk_weights
    unscaled_topk_weights d_unscaled_topk_weights
    unit_x unit_slots cosines dispatch_weights combine_weights d_unit_x d_unit_slots d_cosines
    d_dispatch_weights d_combine_weights d_logits_dispatch d_logits_combine
    shared_logits shared_scores shared_weights unscaled_shared_weights
    d_shared_logits d_shared_weights d_unscaled_shared_weights
    load_error load_integral required_bias bias_edges
    losses.device losses.communication d_logits_device d_logits_communication
    raw_logits clean_logits noise noise_logits noise_std d_raw_logits
    d_clean_logits d_noise_logits d_noise_std
    losses.mutual_information d_logits_mutual_information
    router_gram losses.orthogonality d_router_gram_orthogonality
    latent_rms y_rms latent_routed_rms output_rms""".split()
)
STORE_STAGES = frozenset(
    """x w_router router_bias w_gate w_up w_down b_gate b_up b_down w_shared_gate expert_scale global_scale
    x_rows weighted_x_rows gate_rows up_rows hidden_rows y_rows routed shared_gate_logits shared_gate shared y
    d_y d_routed d_y_rows d_hidden_rows d_gate_rows d_up_rows d_weighted_x_rows d_x_rows
    d_shared d_shared_gate d_shared_gate_logits d_x_gate
    d_x d_x_experts d_x_shared d_x_router
    d_w_router d_router_bias d_w_gate d_w_up d_w_down d_b_gate d_b_up d_b_down d_w_shared_gate
    d_expert_scale d_global_scale soft_scale slot_rows d_soft_scale
    w_shared_router d_w_shared_router
    weighted_hidden_rows d_weighted_hidden_rows w_constant constant constant_logits constant_weights
    d_w_constant d_constant d_constant_logits d_constant_weights
    jitter jittered_x router_norm router_x w_noise d_jittered_x d_router_norm d_router_x d_w_noise
    w_latent_in w_latent_pre_norm w_post_expert_norm w_latent_post_norm w_latent_out output_bias w_output_norm
    latent_x normed_latent_x scaled_y_rows d_scaled_y_rows normed_y_rows latent_routed normed_latent_routed unnormed_y
    d_w_latent_in d_w_latent_pre_norm d_w_post_expert_norm d_w_latent_post_norm d_w_latent_out d_output_bias
    d_w_output_norm d_latent_x d_normed_latent_x d_normed_y_rows d_latent_routed d_normed_latent_routed d_unnormed_y
    d_x_residual""".split()
)
FORMAT_OF = dict.fromkeys(sorted(FLOAT32_STAGES), "float32") | dict.fromkeys(sorted(STORE_STAGES), "store")
