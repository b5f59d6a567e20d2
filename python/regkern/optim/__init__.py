"""Optimizers that do more in their one pass over the parameters."""

from regkern.optim.clipping import (
    clip_grad_norm_,
)
from regkern.optim.half_space import (
    half_space_project_,
)
from regkern.optim.lawn import (
    LAWN,
)
from regkern.optim.muon import (
    Muon,
)
from regkern.optim.proximal import (
    ProxAdamW,
    ProxSGD,
)
from regkern.optim.report import (
    SparsityReport,
    TensorSparsity,
    sparsity_report,
)
from regkern.optim.schedules import (
    CubicRamp,
    WarmUp,
)
from regkern.optim.sharpness import (
    AMP,
    AWP,
    GAM,
    IGNITE,
    SAM,
    GradientNormPenalty,
    OrthogonalGrad,
    weight_perturbation,
)
from regkern.optim.shrinking import (
    ShrinkReport,
    Shrunk,
    shrink,
)
from regkern.optim.sparse_schedules import (
    CosineDecay,
)
from regkern.optim.sparse_training import (
    SparseTraining,
)
from regkern.optim.stochastic import (
    SGD,
    AdamW,
)
from regkern.optim.wrapper import (
    Proximal,
)

__all__ = [
    "AMP",
    "AWP",
    "GAM",
    "IGNITE",
    "LAWN",
    "SAM",
    "SGD",
    "AdamW",
    "CosineDecay",
    "CubicRamp",
    "GradientNormPenalty",
    "Muon",
    "OrthogonalGrad",
    "ProxAdamW",
    "ProxSGD",
    "Proximal",
    "ShrinkReport",
    "Shrunk",
    "SparseTraining",
    "SparsityReport",
    "TensorSparsity",
    "WarmUp",
    "clip_grad_norm_",
    "half_space_project_",
    "shrink",
    "sparsity_report",
    "weight_perturbation",
]
