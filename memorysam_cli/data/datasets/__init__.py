"""One small declaration per published data set; the engine is :mod:`memorysam_cli.data.layout`."""
