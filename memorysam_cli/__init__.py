"""memorysam: multi-modal semantic segmentation with SAM2's memory run across modalities."""

__version__ = "0.1.0"
