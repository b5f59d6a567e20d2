"""Proximal operators, projections, penalties and thresholds over tensors and whole networks."""

from regkern.proximal.activations import (
    ash,
    compand,
    compand_inverse,
    stablemax,
    stablemax_cross_entropy,
)
from regkern.proximal.complex_magnitude import (
    prox_complex,
    prox_complex_,
)
from regkern.proximal.elementwise import (
    penalty_add_gradients_,
    penalty_elementwise,
    penalty_value_and_gradients,
    prox_elementwise,
    prox_elementwise_,
)
from regkern.proximal.envelope import (
    GroupEnvelope,
    TopKGroups,
)
from regkern.proximal.gates import (
    gate,
    gate_penalty,
    rationale_continuity,
    rationale_sparsity,
)
from regkern.proximal.group_norm_penalties import (
    ExclusiveLasso,
    GroupLinf,
    OverlappingGroupL2,
)
from regkern.proximal.group_penalties import (
    GroupL0,
    GroupL2,
    GroupLHalf,
    GroupLogSum,
    GroupMCP,
    GroupSCAD,
    SparseGroup,
    TreeGroups,
)
from regkern.proximal.group_prox import (
    group_norms,
    report_of,
)
from regkern.proximal.groups import (
    Groups,
)
from regkern.proximal.isotonic import (
    cvar_spectrum,
    exponential_spectrum,
    extremile_spectrum,
    isotonic_regression,
    permutahedron_projection,
    soft_rank,
    soft_sort,
    spectral_risk,
    spectral_risk_weights,
)
from regkern.proximal.nuclear import (
    NuclearNorm,
    nuclear_norm,
    singular_value_threshold,
)
from regkern.proximal.pairwise import (
    PairRounds,
    prox_pair_difference,
    prox_pair_difference_,
)
from regkern.proximal.patterns import (
    n_m_mask,
    n_m_projection,
    n_m_projection_,
)
from regkern.proximal.penalties import (
    flops_penalty,
    hypersparse,
    path_norm,
    polarization,
    splade_pool,
)
from regkern.proximal.penalties_elementwise import (
    CEL0,
    L0,
    L1,
    MCP,
    SCAD,
    Box,
    CappedL1,
    ElasticNet,
    LHalf,
    LogSum,
    LTwoThirds,
    NonNegative,
    Power,
    SquaredL2,
    expected_power,
)
from regkern.proximal.penalty import (
    Penalty,
    ProxReport,
)
from regkern.proximal.projections import (
    capped_simplex_projection,
    k_sparse_simplex_projection,
    l1_ball_projection,
    l2_ball_projection,
    linf_ball_projection,
    prox_exclusive_lasso,
    prox_linf,
    prox_linf_,
    simplex_projection,
)
from regkern.proximal.recipes import (
    feature_flow,
    l2_path_norm,
    mask_sparsity,
    prox_matching_loss,
)
from regkern.proximal.sensitivity import (
    sensitivity_shrink_,
)
from regkern.proximal.simplex import (
    entmax15,
    entmax15_loss,
    sparsemax,
    sparsemax_loss,
)
from regkern.proximal.thresholds import (
    KthMagnitude,
    kth_magnitude,
    magnitude_threshold_,
    percentile_shrink_,
    shrink_smallest_,
    top_k_mask,
)
from regkern.proximal.total_variation import (
    prox_fused_lasso,
    prox_total_variation,
)

__all__ = [
    "CEL0",
    "L0",
    "L1",
    "MCP",
    "SCAD",
    "Box",
    "CappedL1",
    "ElasticNet",
    "ExclusiveLasso",
    "GroupEnvelope",
    "GroupL0",
    "GroupL2",
    "GroupLHalf",
    "GroupLinf",
    "GroupLogSum",
    "GroupMCP",
    "GroupSCAD",
    "Groups",
    "KthMagnitude",
    "LHalf",
    "LTwoThirds",
    "LogSum",
    "NonNegative",
    "NuclearNorm",
    "OverlappingGroupL2",
    "PairRounds",
    "Penalty",
    "Power",
    "ProxReport",
    "SparseGroup",
    "SquaredL2",
    "TopKGroups",
    "TreeGroups",
    "ash",
    "capped_simplex_projection",
    "compand",
    "compand_inverse",
    "cvar_spectrum",
    "entmax15",
    "entmax15_loss",
    "expected_power",
    "exponential_spectrum",
    "extremile_spectrum",
    "feature_flow",
    "flops_penalty",
    "gate",
    "gate_penalty",
    "group_norms",
    "hypersparse",
    "isotonic_regression",
    "k_sparse_simplex_projection",
    "kth_magnitude",
    "l1_ball_projection",
    "l2_ball_projection",
    "l2_path_norm",
    "linf_ball_projection",
    "magnitude_threshold_",
    "mask_sparsity",
    "n_m_mask",
    "n_m_projection",
    "n_m_projection_",
    "nuclear_norm",
    "path_norm",
    "penalty_add_gradients_",
    "penalty_elementwise",
    "penalty_value_and_gradients",
    "percentile_shrink_",
    "permutahedron_projection",
    "polarization",
    "prox_complex",
    "prox_complex_",
    "prox_elementwise",
    "prox_elementwise_",
    "prox_exclusive_lasso",
    "prox_fused_lasso",
    "prox_linf",
    "prox_linf_",
    "prox_matching_loss",
    "prox_pair_difference",
    "prox_pair_difference_",
    "prox_total_variation",
    "rationale_continuity",
    "rationale_sparsity",
    "report_of",
    "sensitivity_shrink_",
    "shrink_smallest_",
    "simplex_projection",
    "singular_value_threshold",
    "soft_rank",
    "soft_sort",
    "sparsemax",
    "sparsemax_loss",
    "spectral_risk",
    "spectral_risk_weights",
    "splade_pool",
    "stablemax",
    "stablemax_cross_entropy",
    "top_k_mask",
]
