"""Control plane of sage-infer: schedules requests over engine instances of any backend."""
