"""Model -> model: swap convolutions for operators, fold them back."""
