"""Reports as single HTML files: what they look like; ``engine.reporting`` finds out what they say."""
