"""Execution of scaling plans on the replicas of a control plane."""
