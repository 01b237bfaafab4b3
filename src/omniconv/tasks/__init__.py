"""What is learned: the data, the loss and the metric of a task."""
