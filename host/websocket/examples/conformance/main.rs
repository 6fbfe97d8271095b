//! The peer of a conformance suite: an echo server, or a client that echoes what each case of a server sends.
//!
//! ```sh
//! cargo run -p weir-websocket --example conformance -- server 127.0.0.1:9001 message
//! cargo run -p weir-websocket --example conformance -- client 127.0.0.1:9001 connection 15
//! ```
//!
//! The third argument is the context takeover of permessage-deflate (`message`: never, `connection`: allowed), the fourth the window
//! bits. The server prints `listening on ADDRESS`. The client reads the number of cases at `/getCaseCount`, runs each at
//! `/runCase?case=N`, and asks for the report at `/updateReports`.

mod peer;

use anyhow::{Result, bail};
use tokio::net::TcpListener;
use weir_websocket::{ContextTakeover, DeflateConfig};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [role, address, takeover, rest @ ..] = arguments.as_slice() else {
        bail!("ROLE ADDRESS TAKEOVER [WINDOW_BITS]")
    };
    let deflate = DeflateConfig {
        takeover: match takeover.as_str() {
            "message" => ContextTakeover::Never,
            "connection" => ContextTakeover::Allowed,
            other => bail!("{other}: neither message nor connection"),
        },
        window_bits: rest.first().map_or(Ok(15), |bits| bits.parse())?,
    };
    match role.as_str() {
        "server" => {
            let listener = TcpListener::bind(address).await?;
            #[expect(clippy::print_stdout, reason = "the line that the caller waits for")]
            {
                println!("listening on {}", listener.local_addr()?);
            }
            peer::serve(listener, deflate).await
        }
        "client" => peer::run_cases(address, deflate).await,
        other => bail!("{other}: neither server nor client"),
    }
}
