//! The service proxy and cluster DNS.
