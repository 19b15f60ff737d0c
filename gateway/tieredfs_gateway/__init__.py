"""Front ends that serve over the network: the S3 endpoint, the dataset gateway, the status page."""
