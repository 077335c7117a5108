"""The sections of the losses a router adds to the task's.   Spec 4"""

from dataclasses import dataclass, field, fields
from functools import cached_property

from .field_rules import FLOAT, POSITIVE, WEIGHT, Section, one_of

PROBS = "softmax", "normalized_sigmoid", "sigmoid"


@dataclass(frozen=True, kw_only=True)
class BalanceLoss(Section):
    """coefficient * E * sum_e f_e P_e.   Spec 4.1"""

    coefficient: float = field(default=0.0, metadata=FLOAT)  # times the loss
    counts: str = field(default="all", metadata=one_of("all", "first"))  # all K choices, or only the first
    divide_by_k: bool = True  # with all choices: is f a fraction that sums to 1, or to K
    probs: str = field(default="softmax", metadata=one_of(*PROBS, "relu"))  # P; relu: the weights of ReMoE
    scope: str = field(default="batch", metadata=one_of("batch", "sequence", "global"))  # of f and P
    selection: str = field(default="actual", metadata=one_of("actual", "plain"))  # plain: top K of the unbiased scores


@dataclass(frozen=True, kw_only=True)
class ZLoss(Section):
    """coefficient / T * sum_t logsumexp(logits_t)^2.   Spec 4.2"""

    coefficient: float = field(default=0.0, metadata=FLOAT)  # times the loss


@dataclass(frozen=True, kw_only=True)
class ImportanceLoss(Section):
    """coefficient times how unequal the importances I_e = sum_t g_te are.   Spec 4.3"""

    coefficient: float = field(default=0.0, metadata=FLOAT)  # times the loss
    gates: str = field(default="softmax", metadata=one_of("softmax", "topk"))  # all experts, or softmax over the kept
    form: str = field(default="cv2", metadata=one_of("cv2", "deviation"))  # Var / mean^2, or sum (I_e / T - 1 / E)^2
    ddof: int = field(default=0, metadata=one_of(0, 1))  # 1: the unbiased variance
    eps: float = field(default=0.0, metadata=WEIGHT)  # added to the squared mean


@dataclass(frozen=True, kw_only=True)
class DeviceLoss(Section):
    """coefficient * sum_i f_i P_i over devices i with num_experts / num_devices experts each.   Spec 4.6"""

    coefficient: float = field(default=0.0, metadata=FLOAT)  # times the loss
    num_devices: int = field(default=1, metadata=POSITIVE)  # experts lie on devices in runs of equal length
    probs: str = field(default="softmax", metadata=one_of(*PROBS))  # P
    scope: str = field(default="batch", metadata=one_of("batch", "sequence"))  # of f and P


@dataclass(frozen=True, kw_only=True)
class CommunicationLoss(Section):
    """coefficient * sum_i f_i P_i, f_i counting the tokens sent to device i.   Spec 4.6"""

    coefficient: float = field(default=0.0, metadata=FLOAT)  # times the loss
    num_devices: int = field(default=1, metadata=POSITIVE)  # experts lie on devices in runs of equal length
    device_limit: int = field(default=1, metadata=POSITIVE)  # M, the most devices a token is meant to be sent to
    probs: str = field(default="softmax", metadata=one_of(*PROBS))  # P
    scope: str = field(default="batch", metadata=one_of("batch", "sequence"))  # of f and P


@dataclass(frozen=True, kw_only=True)
class MutualInformationLoss(Section):
    """coefficient * (sum_e P_e log P_e + mean_t H(p_t)): minus the mutual information.   Spec 4.8"""

    coefficient: float = field(default=0.0, metadata=FLOAT)  # times the loss
    terms: str = field(default="both", metadata=one_of("both", "marginal", "conditional"))  # only P, or only H


@dataclass(frozen=True, kw_only=True)
class LoadLoss(Section):
    """coefficient * Var(L) / (mean(L)^2 + eps) of the loads L_e expected under noise drawn anew.   Spec 4.9"""

    coefficient: float = field(default=0.0, metadata=FLOAT)  # times the loss
    threshold: str = field(default="others", metadata=one_of("others", "kth"))  # K-th best of the others, or of all
    ddof: int = field(default=0, metadata=one_of(0, 1))  # 1: the unbiased variance
    eps: float = field(default=0.0, metadata=WEIGHT)  # added to the squared mean


@dataclass(frozen=True, kw_only=True)
class OrthogonalityLoss(Section):
    """coefficient * sum |G - I| or sum (G - I)^2, G = w_router w_router^T.   Spec 4.10"""

    coefficient: float = field(default=0.0, metadata=FLOAT)  # times the loss
    form: str = field(default="l1", metadata=one_of("l1", "frobenius"))  # absolute values, or squares


@dataclass(frozen=True, kw_only=True)
class LossesConfig(Section):
    """The losses the router adds to the task's.   Spec 4"""

    balance: BalanceLoss | None = field(default=None, metadata={"section": BalanceLoss})
    z: ZLoss | None = field(default=None, metadata={"section": ZLoss})
    importance: ImportanceLoss | None = field(default=None, metadata={"section": ImportanceLoss})
    device: DeviceLoss | None = field(default=None, metadata={"section": DeviceLoss})
    communication: CommunicationLoss | None = field(default=None, metadata={"section": CommunicationLoss})
    mutual_information: MutualInformationLoss | None = field(default=None, metadata={"section": MutualInformationLoss})
    load: LoadLoss | None = field(default=None, metadata={"section": LoadLoss})
    orthogonality: OrthogonalityLoss | None = field(default=None, metadata={"section": OrthogonalityLoss})
    bias_update_rate: float = field(default=0.0, metadata=WEIGHT)  # step of the selection-bias controller

    @cached_property
    def present(self):
        """Names of the losses there are."""
        return tuple(spec.name for spec in fields(self) if "section" in spec.metadata and getattr(self, spec.name))

    @property
    def by_sequence(self):
        """Does a loss take its fractions by sequence?"""
        return any(getattr(getattr(self, name), "scope", None) == "sequence" for name in self.present)
