"""`python -m pipeline look`: the packed images on a page, before anything is trained on them."""
