"""When: the flows, the deployments and the command line. Never imports torch."""
