"""Optimal transport: Sinkhorn at every scale, and sparse plans."""

from regkern.transport.bures import (
    bures_wasserstein,
    deep_linear_bures_loss,
    gaussian_wasserstein,
)
from regkern.transport.class_based import (
    ClassBasedPlan,
    class_based_transport,
)
from regkern.transport.dictionary import (
    WassersteinDictionary,
    sinkhorn_conjugate,
    wasserstein_cp_dictionary,
)
from regkern.transport.divergence import (
    monge_gap,
    sinkhorn_divergence,
)
from regkern.transport.exact import (
    Assignment,
    LinePlan,
    assignment,
    transport_1d,
    wasserstein_1d,
)
from regkern.transport.kernel_distances import (
    energy_distance,
    kernel_loss,
    mmd,
    wae_mmd,
)
from regkern.transport.normalize import (
    sinkhorn_normalize,
)
from regkern.transport.partial import (
    partial_transport,
)
from regkern.transport.permutations import (
    HyperConnection,
    gumbel_sinkhorn,
    hyper_connection,
)
from regkern.transport.points_triton import (
    points_softmin,
)
from regkern.transport.prototypes import (
    depict_target,
    sinkhorn_assign,
)
from regkern.transport.ranking import (
    neural_ndcg,
    neural_sort,
)
from regkern.transport.result import (
    Transport,
)
from regkern.transport.router import (
    Routing,
    sparse_route,
)
from regkern.transport.sliced import (
    SortedInitials,
    generalized_sliced_wasserstein,
    max_sliced_wasserstein,
    sliced_wasserstein,
    weights_wasserstein,
)
from regkern.transport.solver import (
    sinkhorn,
)
from regkern.transport.sparse import (
    SparseTransport,
    sparse_transport,
)
from regkern.transport.topic import (
    ecrtm_loss,
)

__all__ = [
    "Assignment",
    "ClassBasedPlan",
    "HyperConnection",
    "LinePlan",
    "Routing",
    "SortedInitials",
    "SparseTransport",
    "Transport",
    "WassersteinDictionary",
    "assignment",
    "bures_wasserstein",
    "class_based_transport",
    "deep_linear_bures_loss",
    "depict_target",
    "ecrtm_loss",
    "energy_distance",
    "gaussian_wasserstein",
    "generalized_sliced_wasserstein",
    "gumbel_sinkhorn",
    "hyper_connection",
    "kernel_loss",
    "max_sliced_wasserstein",
    "mmd",
    "monge_gap",
    "neural_ndcg",
    "neural_sort",
    "partial_transport",
    "points_softmin",
    "sinkhorn",
    "sinkhorn_assign",
    "sinkhorn_conjugate",
    "sinkhorn_divergence",
    "sinkhorn_normalize",
    "sliced_wasserstein",
    "sparse_route",
    "sparse_transport",
    "transport_1d",
    "wae_mmd",
    "wasserstein_1d",
    "wasserstein_cp_dictionary",
    "weights_wasserstein",
]
