//! Connections that are held for subscribers, and fed with events without a guest.

pub(crate) mod connection;
pub(crate) mod feed;
pub(crate) mod gzip;
pub(crate) mod hold;
