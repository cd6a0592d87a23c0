"""The tests of tests/cuda that a rehearsal leaves out, with the reasons."""

from __future__ import annotations

REPEATABLE = "the PTX executor repeats the same result for any kernel"
# Tests that do not run, and why.
LEFT_OUT = {
    "test_numbers::test_results_are_repeatable_bit_for_bit": REPEATABLE,
    "test_products::test_the_last_layer_is_repeatable_bit_for_bit": REPEATABLE,
    "test_products::test_importance_sampling_is_repeatable_bit_for_bit": REPEATABLE,
    "test_products::test_the_first_samples_of_many_are_the_few": (
        "this many samples take long; tests/executed tests sample offsets"
    ),
    "test_numbers::test_ten_million_normals_stay_within_their_promise_and_look_normal": (
        "executing the kernel for this many takes minutes"
    ),
}
# Tests that skip themselves, and their reasons.
SKIP_THEMSELVES = {
    "test_numbers::test_elements_beyond_2_to_the_31_are_the_streams": (
        "needs 12 GiB of free GPU memory"
    ),
    "test_launches::test_an_op_runs_where_its_tensors_are_and_not_on_the_current_device": (
        "needs two CUDA devices"
    ),
    "test_launches::test_no_access_is_out_of_bounds": "compute-sanitizer is not installed",
}
# Memory tests do not read results, so their kernels are launched but not executed.
NOT_EXECUTED = (
    "test_products::test_five_thousand_samples_of_a_thousand_images_take_little_memory",
    "test_products::test_of_the_last_layer_one_chunk_of_residuals_is_in_memory",
)
