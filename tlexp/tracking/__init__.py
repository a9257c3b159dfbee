"""MLflow: opening and closing runs, logging, and reading results back. Only this room knows MLflow.

A run is opened and closed by the process that owns the job, whatever happens to the processes that train; these get the
run's id and add to it.
"""
