//! Checks of a connection.

use weir_config::NatsSource as Config;
use weir_core::wording::counted;

use super::access::{Access, Address};
use super::connection::{Client, open, within};
use super::jetstream;
use crate::check::{Checks, reach, with_remedy};
use crate::driver::DriverError;

/// Checks a stream of NATS: each server and the credentials, then with the first server that accepts them the stream, its consumer, and whether
/// a stream stores the output subject, if there is one.
pub async fn check(config: &Config, output_subject: Option<&str>) -> Checks {
    let mut checks = Checks::default();
    run(&mut checks, config, output_subject).await;
    checks
}

async fn run(checks: &mut Checks, config: &Config, output_subject: Option<&str>) -> Option<()> {
    let access = Access::from(config);
    let addresses = match access.addresses() {
        Ok(addresses) => addresses,
        Err(error) => return checks.record("resolve", Err(error.to_string())),
    };
    let mut connected = None;
    for address in &addresses {
        let server = (addresses.len() > 1).then(|| address.to_string());
        checks.begin_server(server.clone());
        let client = check_server(checks, &access, address).await;
        connected = connected.or(client.map(|client| (client, server)));
    }
    let (client, server) = connected?;
    checks.begin_server(server);
    check_stream(checks, &client, config, output_subject).await
}

/// Checks a server and the credentials.
async fn check_server(checks: &mut Checks, access: &Access<'_>, address: &Address) -> Option<Client> {
    reach(checks, &address.host, address.port, access.timeout).await?;
    let opened = match within(address, access, open(address, access)).await {
        Ok(opened) => opened,
        Err(DriverError::Config(reason)) => return checks.record("tls", Err(reason)),
        Err(error) if address.is_tls || error.to_string().starts_with("TLS") => {
            let remedy = "check ca_file, and that the certificate of the server is for this name";
            return checks.record("tls", Err(with_remedy(&error, remedy)));
        }
        Err(error) => {
            return checks.record("handshake", Err(with_remedy(&error, "check that this is the port of NATS clients")));
        }
    };
    if opened.is_tls {
        checks.record("tls", Ok(((), "established".to_owned())));
    }
    let connected = async { Client::authenticate(opened, &access.credentials()?, access.timeout).await };
    let connected = within(address, access, connected).await;
    let connected = connected
        .map(|client| (client, "accepted".to_owned()))
        .map_err(|error| with_remedy(&error, "check the user, and the files with secrets"));
    checks.record("authenticate", connected)
}

/// Checks the stream, its consumer and the output subject.
async fn check_stream(
    checks: &mut Checks,
    client: &Client,
    config: &Config,
    output_subject: Option<&str>,
) -> Option<()> {
    let remedy = |error: &DriverError| match error {
        DriverError::Config(reason) => reason.clone(),
        error => with_remedy(error, "check the permissions of the user, and that JetStream is enabled"),
    };
    let stream = jetstream::stream(client, &config.stream).await;
    let described =
        stream.map(|stream| ((), format!("`{}` has {}", config.stream, counted(stream.messages(), "message"))));
    checks.record("stream", described.map_err(|error| remedy(&error)))?;
    let described = jetstream::consumer(client, config).await.map(|consumer| match consumer {
        Some(consumer) => {
            let (pending, unacknowledged) = (counted(consumer.num_pending, "message"), consumer.num_ack_pending);
            format!("the consumer `{}` has {pending} to read, and {unacknowledged} in flight", config.consumer)
        }
        None => format!("the consumer `{}` does not exist yet; it is created at the start", config.consumer),
    });
    checks.record("read", described.map(|text| ((), text)).map_err(|error| remedy(&error)))?;
    let Some(output_subject) = output_subject else { return Some(()) };
    let stored = match jetstream::stream_of(client, output_subject).await {
        Ok(Some(stream)) => Ok(((), format!("`{stream}` stores `{output_subject}`"))),
        Ok(None) => Err(format!("no stream stores `{output_subject}`; create one with this subject")),
        Err(error) => Err(remedy(&error)),
    };
    checks.record("write", stored)
}
