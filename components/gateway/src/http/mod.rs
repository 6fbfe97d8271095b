//! HTTP: what every route needs of a request and of a response.

pub(crate) mod body;
pub(crate) mod duplex;
pub(crate) mod request_id;
pub(crate) mod response;
