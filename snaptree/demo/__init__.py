"""The demo estate: real machines with real snapshots, on a private QEMU driver inside this process."""

from snaptree.demo.estate import DemoEstate, DemoProgress, clean_up_leftovers, is_demo, kept_estate, remove_kept

__all__ = ["DemoEstate", "DemoProgress", "clean_up_leftovers", "is_demo", "kept_estate", "remove_kept"]
