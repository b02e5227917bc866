"""The parts of ``InferenceBackendContract``, one subject per module."""
