"""The README and the pages of the site: what they show runs."""
