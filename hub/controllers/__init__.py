"""Controllers: pure cores that decide, one driver that writes."""
