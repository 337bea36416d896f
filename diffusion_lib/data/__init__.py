"""Where pictures come from (sources, folders, decode, toycats) and where they go (pictures)."""
