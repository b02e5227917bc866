"""The parts of ``InferenceBackendContract``, a subject each."""
