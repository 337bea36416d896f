"""Where pictures come from (sources, toycats) and what they become (pictures)."""
