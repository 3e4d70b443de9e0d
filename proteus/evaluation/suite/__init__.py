"""Every protocol on every set that fits it, with tables and pictures: `proteus evaluate`."""
