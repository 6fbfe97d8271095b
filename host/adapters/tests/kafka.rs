//! Kafka, with librdkafka's mock cluster: three brokers that speak the protocol on sockets of this process, with injected faults.
#![cfg(feature = "kafka")]

mod echo;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use echo::{PATIENCE, Running, start, until};
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::sync::{mpsc, watch};
use weir_adapters::build::Plan;
use weir_adapters::check;
use weir_adapters::driver::{BoxFuture, DriverError, Read, Source as _};
use weir_adapters::status::Status;
use weir_adapters::supervisor::{Component, ComponentCall, ComponentError, Supervisor};
use weir_config::{Adapter, AdapterSink, AdapterSource, KafkaSink, KafkaSource};

const PARTITIONS: i32 = 4;

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> Result<Cluster> {
    // It is set once in a process.
    let _ = tracing_subscriber::fmt().with_ansi(false).with_test_writer().try_init();
    let cluster = MockCluster::new(3)?;
    for topic in ["text-input", "sentiment-output", "sentiment-errors"] {
        cluster.create_topic(topic, PARTITIONS, 3)?;
    }
    Ok(cluster)
}

/// Writes records whose payloads are numbers, with a header.
async fn produce(cluster: &Cluster, numbers: std::ops::Range<usize>) -> Result<()> {
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create()?;
    let sends = numbers.map(|number| {
        let (producer, key, payload) = (producer.clone(), format!("k{}", number % 16), number.to_string());
        async move {
            let headers = OwnedHeaders::new().insert(Header { key: "traceparent", value: Some("00-1") });
            let record = FutureRecord::to("text-input").key(&key).payload(&payload).headers(headers);
            producer.send(record, PATIENCE).await.map_err(|(error, _)| error)
        }
    });
    for sent in futures::future::join_all(sends).await {
        sent?;
    }
    Ok(())
}

/// A record of a topic.
#[derive(Debug)]
struct ReadRecord {
    key: String,
    payload: String,
    headers: Vec<(String, String)>,
}

/// Reads the records of a topic.
struct Reader {
    consumer: BaseConsumer,
    records: Vec<ReadRecord>,
}

impl Reader {
    fn new(cluster: &Cluster, topic: &str) -> Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", "reader")
            .set("isolation.level", "read_committed")
            .create()?;
        let mut list = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            list.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&list)?;
        Ok(Self { consumer, records: Vec::new() })
    }

    /// Reads until there are this many different payloads.
    fn read_distinct(&mut self, count: usize) -> Result<()> {
        let began = std::time::Instant::now();
        while self.distinct() < count {
            ensure!(
                began.elapsed() < PATIENCE * 2,
                "{} of {count} results after {:?}",
                self.distinct(),
                began.elapsed()
            );
            self.poll(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Reads what comes within a time.
    fn poll(&mut self, timeout: Duration) {
        let Some(Ok(message)) = self.consumer.poll(timeout) else { return };
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        let headers = headers.map(|header| (header.key.to_owned(), text(header.value))).collect();
        self.records.push(ReadRecord { key: text(message.key()), payload: text(message.payload()), headers });
    }

    fn distinct(&self) -> usize {
        self.records.iter().map(|record| &record.payload).collect::<std::collections::BTreeSet<_>>().len()
    }
}

fn adapter(cluster: &Cluster) -> Adapter {
    let brokers = cluster.bootstrap_servers();
    let sink = |topic: &str| {
        AdapterSink::Kafka(KafkaSink { brokers: brokers.clone(), topic: topic.to_owned(), ..KafkaSink::default() })
    };
    Adapter {
        name: "kafka".into(),
        in_flight_max: 64,
        reconnect_delay_ms: 10,
        source: AdapterSource::Kafka(KafkaSource {
            brokers: brokers.clone(),
            // At a rebalance the mock cluster waits for this time less 1 s, and evicts the members that are late.
            session_timeout_ms: 6000,
            properties: BTreeMap::from([("heartbeat.interval.ms".to_owned(), "500".to_owned())]),
            ..KafkaSource::default()
        }),
        sink: sink("sentiment-output"),
        errors: Some(sink("sentiment-errors")),
        ..Adapter::default()
    }
}

fn source(adapter: &mut Adapter) -> &mut KafkaSource {
    match &mut adapter.source {
        AdapterSource::Kafka(source) => source,
        _ => unreachable!("the source is Kafka"),
    }
}

/// Delays the responses of the coordinator of the group, which leads no partition here. The mock cluster refuses a member that asks for its
/// partitions after the leader of the group has sent them, and the leader waits for the response to one more request before it sends them.
fn delay_leader(cluster: &Cluster) -> Result<()> {
    cluster.coordinator(MockCoordinator::Group("weir".to_owned()), 3)?;
    for partition in 0..PARTITIONS {
        for topic in ["text-input", "sentiment-output"] {
            cluster.partition_leader(topic, partition, Some(1 + partition % 2))?;
        }
    }
    Ok(cluster.broker_round_trip_time(3, Duration::from_millis(300))?)
}

async fn wait_for_results(running: &Running, results: u64) -> Result<()> {
    let status = running.status.clone();
    until("read", async || Ok(status.report().results >= results)).await
}

/// Consumers join and leave in an orderly way: each record has one result, in the order of its key, with its headers.
#[tokio::test(flavor = "multi_thread")]
async fn rebalances_lose_and_repeat_no_record() -> Result<()> {
    let cluster = cluster()?;
    delay_leader(&cluster)?;
    let mut count = 500;
    produce(&cluster, 0..count).await?;
    let mut adapter = adapter(&cluster);
    adapter.ordering = "strict".into();
    let one = start(&adapter)?;
    wait_for_results(&one, 100).await?;
    let two = start(&adapter)?;
    let began = std::time::Instant::now();
    // Until partitions were assigned to the second one; those of both are in use then.
    while two.status.report().results == 0 {
        ensure!(began.elapsed() < PATIENCE, "no partition is assigned to the second consumer");
        produce(&cluster, count..count + 20).await?;
        count += 20;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    produce(&cluster, count..count + 500).await?;
    count += 500;
    one.stop().await?;
    produce(&cluster, count..count + 500).await?;
    count += 500;
    let mut reader = Reader::new(&cluster, "sentiment-output")?;
    reader.read_distinct(count)?;
    two.stop().await?;
    reader.poll(Duration::from_millis(500));
    let mut repeated: BTreeMap<&str, usize> = BTreeMap::new();
    reader.records.iter().for_each(|record| *repeated.entry(&record.payload).or_default() += 1);
    repeated.retain(|_, times| *times > 1);
    ensure!(repeated.is_empty(), "{} of {count} records have several results: {repeated:?}", repeated.len());
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    for record in &reader.records {
        let number: usize = record.payload.parse()?;
        let before = last.insert(record.key.clone(), number);
        ensure!(before.is_none_or(|before| before < number), "{number} after {before:?} of {}", record.key);
        ensure!(record.headers.iter().any(|(name, value)| name == "traceparent" && value == "00-1"), "{record:?}");
    }
    Ok(())
}

/// Reports that a member has asked to join the group, and waits for the others.
struct Joining(Arc<AtomicBool>);

impl ClientContext for Joining {
    fn stats(&self, statistics: Statistics) {
        let is_joining = statistics.cgrp.is_some_and(|group| group.join_state == "wait-join");
        self.0.fetch_or(is_joining, Ordering::Relaxed);
    }
}

impl ConsumerContext for Joining {}

/// The last commit of an adapter that ends while a member joins waits behind its own request to join, and then has the generation before:
/// it is repeated.
#[tokio::test(flavor = "multi_thread")]
async fn commit_of_the_generation_before_is_repeated_at_the_end() -> Result<()> {
    let cluster = cluster()?;
    delay_leader(&cluster)?;
    produce(&cluster, 0..5).await?;
    let mut adapter = adapter(&cluster);
    // Each rebalance takes 5 s, and a second one follows the revocation of partitions.
    source(&mut adapter).timeout_ms = 30_000;
    let one = start(&adapter)?;
    wait_for_results(&one, 5).await?;
    let joining = Arc::new(AtomicBool::new(false));
    let member: BaseConsumer<Joining> = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("group.id", "weir")
        .set("session.timeout.ms", "6000")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false")
        .set("statistics.interval.ms", "20")
        .create_with_context(Joining(joining.clone()))?;
    member.subscribe(&["text-input"])?;
    until("joining", async || {
        ensure!(member.poll(Duration::ZERO).is_none_or(|message| message.is_ok()));
        Ok(joining.load(Ordering::Relaxed))
    })
    .await?;
    produce(&cluster, 5..10).await?;
    wait_for_results(&one, 10).await?;
    one.stop().await?;
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition("text-input", partition);
    }
    let committed = member.committed_offsets(list, PATIENCE)?.to_topic_map();
    // No position is committed of a partition without records.
    let positions = committed.values().filter_map(|offset| offset.to_raw()).map(|position| position.max(0));
    assert_eq!(positions.sum::<i64>(), 10, "{committed:?}");
    Ok(())
}

/// While members join the group, its coordinator refuses commits. An adapter that ends then repeats them, so that no record has two results.
#[tokio::test(flavor = "multi_thread")]
async fn commits_that_a_rebalance_refuses_are_repeated_at_the_end() -> Result<()> {
    let cluster = cluster()?;
    let adapter = adapter(&cluster);
    cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS; 30]);
    produce(&cluster, 0..5).await?;
    let one = start(&adapter)?;
    wait_for_results(&one, 5).await?;
    one.stop().await?;
    produce(&cluster, 5..10).await?;
    let two = start(&adapter)?;
    let mut reader = Reader::new(&cluster, "sentiment-output")?;
    reader.read_distinct(10)?;
    let status = two.stop().await?;
    reader.poll(Duration::from_millis(500));
    assert_eq!((reader.records.len(), status.report().records), (10, 5));
    Ok(())
}

/// The thread of a consumer that has failed closes it. A thread of the runtime that drops the adapter would wait for the records in flight.
#[tokio::test(flavor = "multi_thread")]
async fn failed_consumer_blocks_no_thread_of_the_runtime() -> Result<()> {
    let cluster = cluster()?;
    produce(&cluster, 0..5).await?;
    let config = source(&mut adapter(&cluster)).clone();
    let (mut records, committer) = weir_adapters::kafka::open("kafka", &config, None).await?;
    let read = tokio::time::timeout(PATIENCE, records.read(5)).await??;
    ensure!(matches!(&read, Read::Records(list) if !list.is_empty()), "{read:?}");
    cluster.request_errors(RDKafkaApiKey::Fetch, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 100]);
    let failed = async {
        loop {
            if let Err(failure) = records.read(5).await {
                return failure;
            }
        }
    };
    let failure = tokio::time::timeout(PATIENCE, failed).await?;
    ensure!(matches!(failure, DriverError::Denied(_)), "{failure}");
    let began = std::time::Instant::now();
    drop((records, committer));
    // It would wait for 20 s.
    ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    Ok(())
}

/// What cannot be processed goes to the topic for errors with its key and its bytes: a bad record, a tombstone; a large record is not bad.
#[tokio::test(flavor = "multi_thread")]
async fn bad_records_go_to_the_topic_for_errors() -> Result<()> {
    let cluster = cluster()?;
    let mut adapter = adapter(&cluster);
    adapter.format = "text".into();
    let large = "large ".repeat(500_000);
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("message.max.bytes", "8000000")
        .create()?;
    let forged = OwnedHeaders::new().insert(Header { key: "weir-record-id", value: Some("forged") });
    for payload in ["bad one", large.as_str(), "good"] {
        let record = FutureRecord::to("text-input").key("k").payload(payload).headers(forged.clone());
        producer.send(record, PATIENCE).await.map_err(|(error, _)| error)?;
    }
    let running = start(&adapter)?;
    let (mut results, mut errors) =
        (Reader::new(&cluster, "sentiment-output")?, Reader::new(&cluster, "sentiment-errors")?);
    results.read_distinct(2)?;
    errors.read_distinct(1)?;
    running.stop().await?;
    let lengths: Vec<usize> = results.records.iter().map(|record| record.payload.len()).collect();
    assert_eq!(lengths, [large.len(), 4]);
    let error = &errors.records[0];
    assert_eq!((error.key.as_str(), error.payload.as_str()), ("k", "bad one"));
    let header = |name: &str| {
        let values: Vec<&str> =
            error.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect();
        values.join(" ")
    };
    assert_eq!(header("weir-error-reason"), "it is bad");
    assert_eq!(header("weir-record-id"), format!("text-input-{}-0", error_partition(&header("weir-record-id"))));
    Ok(())
}

/// The partition in the id of a record.
fn error_partition(id: &str) -> &str {
    id.rsplit('-').nth(1).unwrap_or_default()
}

/// Brokers fail, are slow, and hand over the group while records are processed: none is lost.
#[tokio::test(flavor = "multi_thread")]
async fn faults_of_brokers_lose_no_record() -> Result<()> {
    let cluster = cluster()?;
    produce(&cluster, 0..500).await?;
    let running = start(&adapter(&cluster))?;
    wait_for_results(&running, 1).await?;
    cluster.request_errors(
        RDKafkaApiKey::Produce,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT],
    );
    cluster.request_errors(
        RDKafkaApiKey::OffsetCommit,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR, RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT],
    );
    cluster.broker_round_trip_time(1, Duration::from_millis(100))?;
    produce(&cluster, 500..1000).await?;
    cluster.coordinator(MockCoordinator::Group("weir".to_owned()), 2)?;
    cluster.partition_leader("text-input", 0, Some(3))?;
    produce(&cluster, 1000..1500).await?;
    let mut reader = Reader::new(&cluster, "sentiment-output")?;
    reader.read_distinct(1000)?;
    cluster.broker_down(-1)?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.broker_up(-1)?;
    produce(&cluster, 1500..2000).await?;
    reader.read_distinct(2000)?;
    running.stop().await?;
    Ok(())
}

/// A process that ends abruptly repeats what it had not committed, and loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn abrupt_end_loses_no_record() -> Result<()> {
    let cluster = cluster()?;
    for round in 0..2 {
        produce(&cluster, round * 300..(round + 1) * 300).await?;
        let running = start(&adapter(&cluster))?;
        wait_for_results(&running, 100).await?;
        running.kill().await;
    }
    let running = start(&adapter(&cluster))?;
    let mut reader = Reader::new(&cluster, "sentiment-output")?;
    reader.read_distinct(600)?;
    running.stop().await?;
    Ok(())
}

/// Results in transactions. The brokers here do not store the positions of a transaction, so that a second adapter begins anew.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_have_each_result_once() -> Result<()> {
    let cluster = cluster()?;
    produce(&cluster, 0..500).await?;
    let mut adapter = adapter(&cluster);
    source(&mut adapter).guarantee = "transactional".into();
    let running = start(&adapter)?;
    let mut reader = Reader::new(&cluster, "sentiment-output")?;
    reader.read_distinct(500)?;
    let status = running.stop().await?;
    reader.poll(Duration::from_millis(500));
    ensure!(reader.records.len() == 500, "{} results", reader.records.len());
    ensure!(status.report().reconnects == 0, "{:?}", status.report());
    adapter.errors = None;
    adapter.sink = AdapterSink::Stdout(weir_config::StdoutSink::default());
    let error = Plan::new(&adapter, 1).err().context("it is accepted")?;
    ensure!(error.contains("source.guarantee `transactional` needs topics"), "{error}");
    Ok(())
}

/// Takes records, and gives results once it may.
struct Slow(watch::Receiver<bool>, Arc<AtomicBool>);

impl Component for Slow {
    fn open(&self) -> BoxFuture<'_, Result<ComponentCall, ComponentError>> {
        let (mut may, has_records) = (self.0.clone(), self.1.clone());
        Box::pin(async move {
            let call = echo::Echo.open().await?;
            let (outgoing, results) = mpsc::channel(1);
            let mut answers = call.results;
            let task = tokio::spawn(async move {
                while let Some(result) = answers.recv().await {
                    has_records.store(true, Ordering::Relaxed);
                    // An error means that the test is over.
                    let _ = may.wait_for(|may| *may).await;
                    if outgoing.send(result).await.is_err() {
                        return;
                    }
                }
            });
            let end = Box::pin(async move { task.await.err().map(|error| error.to_string()) });
            Ok(ComponentCall { records: call.records, results, end })
        })
    }
}

/// A model that takes longer than `max.poll.interval.ms` pauses partitions: the consumer stays in its group.
#[tokio::test(flavor = "multi_thread")]
async fn slow_model_stays_in_the_group() -> Result<()> {
    let cluster = cluster()?;
    produce(&cluster, 0..2000).await?;
    let mut adapter = adapter(&cluster);
    adapter.in_flight_max = 8;
    source(&mut adapter).properties.insert("max.poll.interval.ms".to_owned(), "8000".to_owned());
    let plan = Plan::new(&adapter, 1).map_err(anyhow::Error::msg)?;
    let status = Status::new(&plan.name, plan.source, plan.sink);
    let (may, allowed) = watch::channel(false);
    let has_records = Arc::new(AtomicBool::new(false));
    let component = Arc::new(Slow(allowed, has_records.clone()));
    let (stop, stopped) = watch::channel(false);
    let supervisor = Supervisor::new(plan.driver, component, plan.bounds, status.clone());
    let task = tokio::spawn(supervisor.run(stopped));
    until("assigned", async || Ok(has_records.load(Ordering::Relaxed))).await?;
    // Longer than the interval after which a consumer that does not poll leaves its group.
    tokio::time::sleep(Duration::from_millis(9000)).await;
    ensure!(status.report().reconnects == 0, "{:?}", status.report());
    may.send(true)?;
    let mut reader = Reader::new(&cluster, "sentiment-output")?;
    reader.read_distinct(2000)?;
    stop.send(true)?;
    task.await??;
    ensure!(reader.records.len() == 2000, "{} results", reader.records.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_are_named() -> Result<()> {
    let cluster = cluster()?;
    let mut wrong = adapter(&cluster);
    source(&mut wrong).properties = BTreeMap::from([("no.such.property".to_owned(), "secret".to_owned())]);
    let failure = start(&wrong)?.failed().await?.to_string();
    ensure!(failure.contains("no.such.property") && !failure.contains("secret"), "{failure}");
    // Refused before anything connects, in the source and in the sinks.
    let tls = BTreeMap::from([("security.protocol".to_owned(), "sasl_ssl".to_owned())]);
    let mut sink = adapter(&cluster);
    if let AdapterSink::Kafka(config) = &mut sink.sink {
        config.properties = tls.clone();
    }
    source(&mut wrong).properties = tls;
    for adapter in [&wrong, &sink] {
        match (Plan::new(adapter, 1).err(), cfg!(feature = "kafka-tls")) {
            (None, true) => {}
            (Some(error), false) => {
                ensure!(error.contains("security.protocol=sasl_ssl") && error.contains("`kafka-tls`"), "{error}")
            }
            (error, _) => anyhow::bail!("{error:?}"),
        }
    }
    source(&mut wrong).properties = BTreeMap::new();
    source(&mut wrong).guarantee = "exactly".into();
    let error = Plan::new(&wrong, 1).err().context("it is accepted")?;
    ensure!(error.contains("`exactly` is not a guarantee"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_name_what_fails_and_what_to_do() -> Result<()> {
    let cluster = cluster()?;
    let mut adapter = adapter(&cluster);
    let config = source(&mut adapter).clone();
    let checks = check::kafka(&config, Some("sentiment-output")).await;
    let names: Vec<&str> = checks.list.iter().map(|check| check.name).collect();
    assert!(checks.passed(), "{checks:?}");
    // The address of each of the three brokers is checked.
    let expected = [&["resolve", "connect"].repeat(3)[..], &["authenticate", "topic", "read", "write"]].concat();
    assert_eq!(names, expected);
    let closed = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let checks = check::kafka(&KafkaSource { brokers: closed.to_string(), ..config }, Some("sentiment-output")).await;
    let last = checks.list.last().context("no checks")?;
    assert!(last.name == "connect" && last.outcome.is_err(), "{checks:?}");
    Ok(())
}
