"""What training reads: prepared cases kept in memory or on a disk, and the patches drawn from them."""
