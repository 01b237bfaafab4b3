"""omniconv."""
