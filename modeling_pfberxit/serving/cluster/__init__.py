"""What many processes need that one does not: Ray Data, one answer for each request, metrics, numbers of replicas."""
