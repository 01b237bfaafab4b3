"""What is searched for outside of gradient descent."""
