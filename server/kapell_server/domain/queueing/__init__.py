"""Who runs next: queues, fairness, limits, dispatch, and why a task is not running yet."""
