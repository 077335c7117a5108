"""Experts by the word: a table from token id to expert ids.   Spec 1.8"""


def hashed(offer, config, num):
    """topk_indices = hash_table[token_ids]: nothing is ranked, and there is no margin.   Spec 1.8; DeepSeek-V4

    token_ids (T,), hash_table (V, K) -> topk_indices (T, K) in the table's order, None
    """
    return offer.params.hash_table[offer.given.token_ids], None
