"""The ground floor: argument parsers, the convolution contract, cards, the registry."""
