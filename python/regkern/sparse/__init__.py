"""Sparse backprop: products with sparse matrices at the cost of their entries."""

from regkern.sparse.convolutions import (
    sparse_conv1d,
    sparse_conv2d,
)
from regkern.sparse.cost import (
    Cost,
    CostModel,
    Decision,
    pays,
)
from regkern.sparse.deltas import (
    SparseDelta,
)
from regkern.sparse.densities import (
    global_densities,
    layer_densities,
)
from regkern.sparse.gates import (
    binary_gate,
    gradient_dropout,
    mask_tuned_linear,
    mass_gate,
    mass_gate_loss,
    score_gate,
)
from regkern.sparse.growing import (
    Candidates,
    grow_candidates,
    grow_candidates_conv2d,
)
from regkern.sparse.masked import (
    masked_linear,
    masked_weight,
    write_entries_,
)
from regkern.sparse.masked_conv import (
    masked_conv1d,
    masked_conv2d,
)
from regkern.sparse.meprop import (
    meprop_linear,
    row_top_k,
    topk_gradient,
)
from regkern.sparse.pattern import SparsePattern
from regkern.sparse.products import sddmm, sparse_linear, spmm, spmm_t
from regkern.sparse.selection import (
    GradientSquares,
    adapter_density,
    random_pattern,
    small_weight_mask,
    snip_mask,
    structured_pattern,
)
from regkern.sparse.tensor_cores import (
    sddmm_tiles,
)
from regkern.sparse.updates import (
    PatternUpdate,
    entry_map,
    grow,
    grow_at,
    prune,
    remap,
    remap_state,
    update_pattern,
)

__all__ = [
    "Candidates",
    "Cost",
    "CostModel",
    "Decision",
    "GradientSquares",
    "PatternUpdate",
    "SparseDelta",
    "SparsePattern",
    "adapter_density",
    "binary_gate",
    "entry_map",
    "global_densities",
    "gradient_dropout",
    "grow",
    "grow_at",
    "grow_candidates",
    "grow_candidates_conv2d",
    "layer_densities",
    "mask_tuned_linear",
    "masked_conv1d",
    "masked_conv2d",
    "masked_linear",
    "masked_weight",
    "mass_gate",
    "mass_gate_loss",
    "meprop_linear",
    "pays",
    "prune",
    "random_pattern",
    "remap",
    "remap_state",
    "row_top_k",
    "score_gate",
    "sddmm",
    "sddmm_tiles",
    "small_weight_mask",
    "snip_mask",
    "sparse_conv1d",
    "sparse_conv2d",
    "sparse_linear",
    "spmm",
    "spmm_t",
    "structured_pattern",
    "topk_gradient",
    "update_pattern",
    "write_entries_",
]
