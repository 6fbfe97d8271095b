//! Errors of the start of the server.

use crate::head_checks::HeadCheckError;

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {}", remedy(address, source))]
    Listen {
        /// The address as configured.
        address: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The runtime was started without a gateway.
    #[error("the runtime was started without a gateway")]
    NoGateway,
    /// A setting cannot be used.
    #[error(transparent)]
    Setting(#[from] HeadCheckError),
}

/// The remedy for an address that cannot be used.
fn remedy(address: &str, error: &std::io::Error) -> String {
    let port = address.rsplit_once(':').map_or(address, |(_, port)| port);
    match error.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "port {port} is in use; stop the program that listens there, or take another port with --listen (port 0 takes a \
             free one)"
        ),
        std::io::ErrorKind::PermissionDenied => {
            format!("this user may not listen on port {port}; take one from 1024 on with --listen")
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; 127.0.0.1 always exists, and 0.0.0.0 means all addresses of the machine"
                .to_owned()
        }
        _ => "take another address with --listen".to_owned(),
    }
}
