"""Stores: an ordered map of keys with revisions, transactions and watches, as etcd has them."""
