"""How many registers a kernel may use on sm_90. A kernel that is not named here has DEFAULT.

64 registers let four blocks of 256 threads share a multiprocessor. What takes more says why.
"""

from __future__ import annotations

DEFAULT = 64

# The first pattern (a regular expression on the demangled name) that matches counts.
EXCEPTIONS = {
    # One warp in all: Newton's iteration in double, nothing to be hidden by other warps.
    r"\bplan_kernel\(": 80,
    # Drawing has 64-bit coordinates of planes, chunks and blocks; three blocks still fit.
    r"\b(planes|chunks)_kernel\(": 80,
    # Gamma variates in double: a thread per sample, far fewer threads than the device holds.
    r"\bmix_params_kernel\(": 96,
    # Gamma variates in double, as above: coarse grids.
    r"\bbeta_noise_kernel\(": 80,
    # Eight doubles a thread with one or two numbers each; two blocks fit.
    r"\bnoise_inject_kernel<double": 96,
    r"\bnoise_triplet_kernel<double": 80,
    # Noise, residual and ReLU on 64-bit indices: tensors of 2³¹ elements and more alone.
    r"\bmask_apply_kernel<[^>]*true, long>": 80,
    # Tensors of 2³⁰ elements and more alone: 64-bit divisions for blocks, rows and runs.
    r"\brange_runs_kernel<[^>]*, long>": 96,
    r"\bmoments_cubic_kernel<[^>]*, long>": 80,
    # Five sums over a warp in double; the chunk is in shared memory, and three blocks a
    # multiprocessor have 96 KiB of loads in flight.
    r"\bmoments_chunks_kernel<": 80,
    # Two times seven numbers in double are merged, one in 32 chunks each.
    r"\bmoments_merge_kernel\(": 80,
    # Scales from a table: eight elements, their random bits and the place of the next block.
    r"\bquantize_kernel<float, [^>]*Find\)2>": 80,
    # Eight doubles and their scales a thread.
    r"\bquantize_kernel<double": 120,
    # Four elements in flight, each with x, dy and three results; 64-bit divisions are calls, which
    # registers have to survive. Two blocks of 256 threads fit.
    r"\b(row|column)_sums_kernel<": 112,
    # Distances, minima and places of four blocks at once: they share every load of a centroid.
    r"\bnearest_kernel<": 80,
    # A thread walks along a line with the state of both extremes in double.
    r"\btotal_variation_kernel<": 80,
    # Five to nine integer sums of a slice at once, and divisions in double, which are calls; the
    # slice is in shared memory, and two blocks hide each other's barriers.
    r"\brow_threshold_kernel<": 128,
    # Eight weights a thread with gradients and states, 96 bytes and more on their way: three blocks
    # have enough of them in flight.
    r"\bstep_kernel<": 80,
    # Any law is a call, around which two sums of eight lanes in double stay in registers.
    r"\b(shrink_gradient|penalty)_kernel<double>\(regkern::ListChunk<regkern::proximal": 160,
    r"\b(shrink_gradient|penalty)_kernel<[^>]*>\(regkern::ListChunk<regkern::proximal": 112,
    # A call of any law in double, eight lanes around it.
    r"\bshrink_kernel<double>": 104,
    # Eight weights, gradients and places in rows, with 64-bit indices.
    r"\bsensitivity_kernel<double": 88,
    # As above.
    r"\bcomplex_kernel<double": 120,
    r"\bcomplex_kernel<": 80,
    # Three sums of eight lanes in double.
    r"\bnetwork_sums_kernel<": 80,
    # The same from two tensors; a power is a logarithm and an exponential in double.
    r"\bnetwork_norms_kernel<\(regkern::spectral::Norms\)4": 120,
    r"\bnetwork_norms_kernel<": 96,
    # Eight doubles of two tensors, and a power of each.
    r"\bnetwork_combine_kernel<[^>]*Direction\)2, double>": 88,
    # Two rows of doubles a thread, and the sums of 16 warps; 512 threads are a block.
    r"\bpair_blocks_kernel<double>": 88,
    # Four steps and derivatives in double, and 64-bit places in two tensors.
    r"\blatent_teams_back_kernel<[^>]*4>": 80,
    # Long groups: stripes that stay in registers while the block adds again in double. 20 and 16
    # warps a multiprocessor remain.
    r"\bgroup_rows_kernel<[^>]*16, false>": 96,
    r"\bgroup_rows_kernel<[^>]*double, false>": 112,
    # Four stripes that stay in registers, and the sums of their lanes in double.
    r"\bgroup_(rows|runs)_kernel<": 80,
    # Sums in double of the columns of a vector, and four rows of it in flight.
    r"\bgroup_columns_kernel<": 80,
    # A group's elements stay with its team from the step to the scaling; the norm is in double.
    r"\bprox_groups_kernel<": 128,
    # Eight weights a thread with gradients and states, twice as wide in double; any law follows.
    r"\bprox_step_kernel<double": 136,
    r"\bprox_step_kernel<float": 96,
    # Newton's iteration in double; divisions are calls, which registers have to survive.
    r"\badam_metric_kernel<": 104,
    # 16 numbers of a row, of the next one, of the vector and of sums of columns. Two blocks of 256
    # threads fit, one of doubles.
    r"\bpower_rows_kernel<double": 224,
    r"\bpower_rows_kernel<": 128,
    # The sixteen chunks of a span in flight.
    r"\bpower_columns_kernel<": 80,
    # Sums of eight lanes in double, and eight doubles.
    r"\bgram_residual_kernel<[^>]*double>": 72,
    # A warp keeps a row of up to 1024 elements, 32 a lane; four blocks of 128 threads fit. A block
    # adds up longer ones in double, eight lanes a thread; six fit.
    r"\brow_(rescale|project_backward)_kernel<[^>]*true>": 128,
    r"\brow_(rescale|project_backward)_kernel<": 84,
    # A piece of both tensors in registers, of which one to three sums are folded in double.
    r"\bsample_pieces_kernel<double": 104,
    r"\bsample_pieces_kernel<": 80,
    # Two tensors of doubles, two stripes in flight.
    r"\bsample_combine_kernel<double": 72,
    # A piece of both rows in registers; the terms of a fold in double are long polynomials.
    r"\bsoftmax_kl_kernel<double": 128,
    r"\bsoftmax_kl_kernel<": 80,
    # Eight neighbours, their factors and the sum of their copies in double.
    r"\bdropout_kernel<double": 112,
    # Eight neighbours of two tensors and their factors in double.
    r"\bblend_kernel<double": 112,
    # Distances and terms of eight columns, and any of five kernels in the loop over pairs; four
    # blocks of 128 threads fit.
    r"\bkernel_sums_kernel<double": 128,
    r"\bkernel_sums_kernel<": 112,
    # A thread has a problem in registers: 64 numbers and their scalings, and as many slopes.
    r"\bnormalize_square_backward_kernel<8>": 232,
    r"\bnormalize_square_backward_kernel<4>": 96,
    r"\bnormalize_square_kernel<8>": 120,
    # All steps of a problem in one kernel: places, weights and options of every phase stay. Blocks
    # are few, since each has a matrix in shared memory.
    r"\bnormalize_backward_kernel<[^>]*true>": 255,
    r"\bnormalize_(log_)?backward_kernel<": 168,
    r"\bnormalize_kernel<double": 168,
    r"\bnormalize_(log_)?kernel<": 112,
    # All iterations of a problem in one kernel: the places of fourteen arrays, its numbers, and
    # logarithms in double. Blocks are few: each has a matrix in shared memory.
    r"\btransport_small_kernel<": 176,
    # Exponentials of doubles, eight of them on their way.
    r"\btransport_rows_kernel<double": 88,
    r"\btransport_kept_rows_kernel<double": 96,
    # Sums over a problem's points, exponentials in double and Anderson's extrapolation: a block has
    # a whole problem, and there are few of those.
    r"\btransport_step_kernel\(": 128,
    r"\btransport_end_kernel\(": 96,
    # Eight rows by four columns of sums, and maximum and sum of each row: the more rows share a
    # column, the fewer reads of shared memory there are for a product.
    r"\bpoints_(softmin|argmax)_kernel<": 128,
    r"\bpoints_rows_kernel<": 128,
    # A column by sixteen rows, likewise.
    r"\bpoints_columns_kernel<": 96,
    # As above, with two rows by four columns, and 64-bit places in five tensors.
    r"\bpoints_apply_kernel<": 112,
    # A column's state in double, four rows in flight; divisions are calls. Two blocks of 256
    # threads fit.
    r"\bsparse_evaluate_kernel<": 96,
    # A block per problem: the search's state in double, the same in every thread.
    r"\bsparse_stage_kernel<": 128,
    # Eight vectors of a tile in flight, 16 bytes of each a thread, beside entries and sums: threads
    # wait for the second cache, and five blocks of 128 of them have 80 KiB of loads on their way.
    r"\bsparse_(spmm|sddmm)_kernel<": 96,
    # A quarter of a tile of sums, 32 numbers, and what they are multiplied from, another 32; four
    # blocks of 128 threads fit.
    r"\bsparse_sddmm_tiles_kernel<": 120,
    # Two axes of a convolution with 64-bit divisions, which are calls; three blocks fit.
    r"\bsparse_conv_(pack|columns)_kernel<": 80,
}

# Kernels that move a tensor: the demangled name, and the 16-byte loads and stores that its code has
# at least, one for each vector that a thread keeps in flight.
WIDE_ACCESSES = {
    r"\bmask_apply_kernel<float, 4, true, false, unsigned int>": 4,
    r"\bmask_apply_kernel<double, 2, true, false, unsigned int>": 4,
    r"\bmask_apply_kernel<regkern::bfloat16, 8, true, false, unsigned int>": 4,
    r"\bmask_apply_kernel<regkern::float16, 8, true, false, unsigned int>": 4,
    r"\bmask_apply_kernel<float, 4, false, false, unsigned int>": 4,
    r"\bdropout_kernel<float, false>": 2,
    r"\bdropout_kernel<regkern::bfloat16, false>": 1,
    r"\bpatch_copy_kernel<uint4>": 4,
    r"\bmask_mix_kernel<float>": 2,
    r"\bmask_mix_kernel<regkern::bfloat16>": 1,
    r"\bblend_kernel<float, false>": 2,
    r"\bblend_kernel<float, true>": 2,
    r"\bblend_kernel<regkern::bfloat16, false>": 1,
    r"\bscore_gate_kernel<float>": 2,
    r"\bscore_gate_kernel<regkern::bfloat16>": 1,
    r"\bprefix_kernel<float>": 2,
    r"\bprefix_kernel<regkern::bfloat16>": 1,
    r"\bmix_kernel<unsigned char, 16, false, unsigned int>": 4,
    r"\bmix_kernel<unsigned short, 8, false, unsigned int>": 4,
    r"\bmix_kernel<unsigned int, 4, false, unsigned int>": 4,
    r"\bmix_kernel<unsigned long, 2, false, unsigned int>": 4,
    r"\bmix_kernel<float, 4, true, unsigned int>": 2,
    r"\bmix_kernel<regkern::bfloat16, 8, true, unsigned int>": 2,
    r"\badjoint_kernel<float, 4, unsigned int>": 1,
    r"\bmoments_cubic_kernel<float, 4, unsigned int>": 4,
    r"\bmoments_cubic_kernel<regkern::bfloat16, 8, unsigned int>": 4,
    r"\bquantize_kernel<float, [^>]*Kind\)1, [^>]*Find\)0>": 2,
    r"\bquantize_kernel<float, [^>]*Kind\)0, [^>]*Find\)0>": 2,
    r"\bquantize_kernel<float, [^>]*Kind\)2, [^>]*Find\)3>": 2,
    r"\bblock_select_kernel<unsigned int, 4, true, unsigned int>": 1,
    r"\bblock_select_kernel<unsigned short, 8, false, unsigned int>": 1,
    r"\bcentroid_select_kernel<unsigned int, 4, unsigned int>": 1,
    r"\bweight_noise_kernel<float, \(regkern::quantize::Noise\)1>": 1,
    r"\bweight_noise_kernel<regkern::bfloat16, \(regkern::quantize::Noise\)3>": 1,
    r"\buniform_noise_kernel<regkern::float16>": 1,
    r"\bcopy_stochastic_kernel<float, regkern::bfloat16>": 1,
    r"\brow_threshold_kernel<float, 256, [^>]*Solver\)0>": 1,
    r"\brow_threshold_kernel<regkern::bfloat16, 256, [^>]*Solver\)0>": 1,
    r"\bstep_kernel<regkern::bfloat16, float, regkern::AdamWRule<float, false>": 5,
    r"\bstep_kernel<regkern::bfloat16, regkern::bfloat16, regkern::AdamWRule<float, false>": 3,
    r"\bstep_kernel<regkern::bfloat16, float, regkern::SgdRule<float, true>": 3,
    r"\bshrink_fast_kernel<float, \(regkern::proximal::Law\)0>": 2,
    r"\bshrink_fast_kernel<regkern::bfloat16, \(regkern::proximal::Law\)5>": 1,
    r"\bapply_kernel<float, false>": 2,
    r"\bsensitivity_kernel<float, \(regkern::proximal::Sensitivity\)0>": 2,
    r"\bgroup_rows_kernel<\(regkern::proximal::Before\)0, float, true>": 4,
    r"\bgroup_rows_kernel<\(regkern::proximal::Before\)0, regkern::bfloat16, true>": 2,
    r"\bgroup_rows_kernel<\(regkern::proximal::Before\)0, float, false>": 4,
    r"\bgroup_scale_kernel<\(regkern::proximal::Before\)0, float, false, unsigned int>": 1,
    r"\bnetwork_combine_kernel<\(regkern::spectral::Direction\)0, float>": 2,
    r"\bnetwork_copy_kernel<unsigned int>": 2,
    r"\bprox_step_kernel<float, regkern::AdamWRule<float, false>, true": 6,
    r"\bprox_step_kernel<float, regkern::SgdRule<float, true>, true": 4,
    r"\brank_one_kernel<float, true>": 1,
    r"\brank_one_kernel<regkern::bfloat16, false>": 1,
    r"\brow_rescale_kernel<float, true>": 8,
    r"\brow_rescale_kernel<regkern::bfloat16, true>": 4,
    r"\brow_project_backward_kernel<float, true>": 2,
    r"\bsample_combine_kernel<float>": 2,
    r"\bnormalize_samples_kernel<float>": 2,
    r"\bstandardize_kernel<float, 4>": 4,
    r"\bcolumn_combine_kernel<float, 4>": 4,
    r"\brandom_directions_kernel<float, \(regkern::spectral::Distribution\)0>": 2,
    r"\btransport_columns_kernel<float, 4>": 1,
    r"\btransport_columns_kernel<regkern::bfloat16, 8>": 2,
    r"\btransport_kept_columns_kernel<float, 4>": 1,
    r"\btransport_plan_kernel<float, 4>": 1,
    r"\btransport_plan_kernel<regkern::bfloat16, 8>": 1,
    # Eight vectors read for each that is written.
    r"\bsparse_spmm_kernel<float, 64>": 1,
    r"\bsparse_spmm_kernel<regkern::bfloat16, 64>": 1,
    r"\bsparse_sddmm_kernel<float, 64, true>": 1,
    r"\bsparse_sddmm_kernel<regkern::bfloat16, 64, true>": 1,
    r"\bnormalize_square_kernel<4>": 4,
    r"\bnormalize_square_backward_kernel<4>": 4,
}
