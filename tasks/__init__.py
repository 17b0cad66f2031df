"""One module per stage; a task is a policy and a few lines."""
