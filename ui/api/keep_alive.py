"""What a stream of events sends while it has nothing to tell: proxies cut connections that are silent for a minute."""

QUIET_S = 5.0
COMMENT = ": waiting\n\n"  # clients skip it
