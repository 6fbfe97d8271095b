//! The store component for Spin, `wasi:keyvalue@0.2.0-draft2`, in a host of this test: a bucket in memory that several instances share,
//! and that can fail.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use wasmtime::component::{Accessor, Component, HasSelf, Resource};
use wasmtime::{Config, Engine, Error, ResourceLimiter, Result, Store, bail, ensure, format_err};
use wasmtime_wasi::WasiCtx;
use weir_tests::{PATIENCE, component};
use weir_wasi::StoreData;

mod bindings {
    #![allow(clippy::all, unreachable_pub)]

    /// A bucket that is open in an instance.
    pub struct Bucket;

    wasmtime::component::bindgen!({
        inline: "
            package weir:test;
            world store {
                import wasi:keyvalue/store@0.2.0-draft2;
                import wasi:keyvalue/atomics@0.2.0-draft2;
                export weir:%stream/events@0.1.0;
                export weir:%stream/state@0.1.0;
            }
        ",
        path: ["../wit", "../components/store-keyvalue-draft2/wit"],
        world: "weir:test/store",
        imports: { default: trappable },
        exports: { default: async },
        additional_derives: [Clone],
        with: { "wasi:keyvalue/store.bucket": crate::keyvalue_draft2::bindings::Bucket },
    });
}

use bindings::Bucket;
use bindings::exports::weir::stream::events::{Cursor, Event, Failure, Fence};
use bindings::exports::weir::stream::state::Acquisition;
use bindings::wasi::keyvalue::{atomics, store};

/// The data of the bucket, and whether its calls fail.
#[derive(Default)]
struct Shared {
    data: BTreeMap<String, Vec<u8>>,
    is_failing: bool,
}

type Data = Arc<Mutex<Shared>>;
type Answer<T> = wasmtime::Result<Result<T, store::Error>>;

fn call<T>(host: &mut StoreData, effect: impl FnOnce(&mut BTreeMap<String, Vec<u8>>) -> T) -> Answer<T> {
    let mut shared = host.state::<Data>().lock().expect("no test panics while it holds this");
    Ok(if shared.is_failing {
        Err(store::Error::Other("no connection".to_owned()))
    } else {
        Ok(effect(&mut shared.data))
    })
}

impl store::Host for StoreData {
    fn open(&mut self, identifier: String) -> Answer<Resource<Bucket>> {
        // Spin has the names that the manifest gives to a component.
        Ok(if identifier == "default" { Ok(Resource::new_own(0)) } else { Err(store::Error::AccessDenied) })
    }
}

impl store::HostBucket for StoreData {
    fn get(&mut self, _: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>> {
        call(self, |data| data.get(&key).cloned())
    }

    fn set(&mut self, _: Resource<Bucket>, key: String, value: Vec<u8>) -> Answer<()> {
        call(self, |data| drop(data.insert(key, value)))
    }

    fn delete(&mut self, _: Resource<Bucket>, key: String) -> Answer<()> {
        call(self, |data| drop(data.remove(&key)))
    }

    fn list_keys(&mut self, _: Resource<Bucket>, cursor: Option<String>) -> Answer<store::KeyResponse> {
        // In small pages, which Spin itself does not have.
        let after = cursor.unwrap_or_default();
        call(self, |data| {
            let keys: Vec<String> = data.keys().filter(|key| **key > after).take(3).cloned().collect();
            store::KeyResponse { cursor: keys.last().cloned(), keys }
        })
    }

    fn drop(&mut self, _: Resource<Bucket>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl atomics::Host for StoreData {
    fn increment(&mut self, _: Resource<Bucket>, key: String, delta: i64) -> Answer<i64> {
        call(self, |data| {
            let number =
                data.get(&key).and_then(|bytes| bytes.as_slice().try_into().ok()).map_or(0, i64::from_le_bytes);
            data.insert(key, (number + delta).to_le_bytes().to_vec());
            number + delta
        })
    }
}

struct Unlimited;

impl ResourceLimiter for Unlimited {
    fn memory_growing(&mut self, _: usize, _: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, _: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(true)
    }
}

/// The component, compiled.
#[derive(Clone)]
struct Host {
    engine: Engine,
    code: bindings::StorePre<StoreData>,
    data: Data,
}

impl Host {
    fn new() -> Result<Self> {
        let engine = Engine::new(Config::new().wasm_component_model_async(true))?;
        let mut linker = weir_wasi::linker(&engine)?;
        store::add_to_linker::<_, HasSelf<StoreData>>(&mut linker, |host| host)?;
        atomics::add_to_linker::<_, HasSelf<StoreData>>(&mut linker, |host| host)?;
        let file = component("store_keyvalue_draft2.wasm").map_err(|error| format_err!("{error:#}"))?;
        let component = Component::from_file(&engine, file)?;
        let code = bindings::StorePre::new(linker.instantiate_pre(&component)?)?;
        Ok(Self { engine, code, data: Data::default() })
    }

    async fn instance(&self) -> Result<Instance> {
        let mut wasi = WasiCtx::builder();
        wasi.inherit_stderr();
        let mut store = Store::new(&self.engine, StoreData::new(wasi.build(), Unlimited, self.data.clone()));
        let component = self.code.instantiate_async(&mut store).await?;
        Ok(Instance { store, component })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Shared) -> T) -> T {
        act(&mut self.data.lock().expect("no test panics while it holds this"))
    }
}

/// An instance of the component.
struct Instance {
    store: Store<StoreData>,
    component: bindings::Store,
}

impl Instance {
    async fn append(&mut self, data: &str, fence: Option<Fence>) -> Result<Result<Vec<Cursor>, Failure>> {
        let event = Event { name: "note".to_owned(), data: data.to_owned(), coalesce: None, finishes: false };
        let component = &self.component;
        let run = async |accessor: &Accessor<StoreData>| {
            let events = component.weir_stream_events();
            events.call_append(accessor, "note:x".to_owned(), vec![event], fence, None).await
        };
        self.store.run_concurrent(run).await?
    }

    /// The data of all events.
    async fn read(&mut self) -> Result<Result<Vec<(Cursor, String)>, Failure>> {
        let component = &self.component;
        let run = async |accessor: &Accessor<StoreData>| {
            let start = Cursor { epoch: 0, seq: 0 };
            component.weir_stream_events().call_read(accessor, "note:x".to_owned(), start, 1000).await
        };
        let page = self.store.run_concurrent(run).await??;
        Ok(page.map(|page| page.entries.into_iter().map(|entry| (entry.at, entry.event.data)).collect()))
    }

    async fn acquire(&mut self, owner: &str) -> Result<Result<Acquisition, Failure>> {
        let (component, owner) = (&self.component, owner.to_owned());
        let run = async |accessor: &Accessor<StoreData>| {
            component.weir_stream_state().call_acquire(accessor, "session:x".to_owned(), owner, 1).await
        };
        self.store.run_concurrent(run).await?
    }

    async fn put(&mut self, key: &str, value: &[u8]) -> Result<Result<(), Failure>> {
        let (component, key, value) = (&self.component, key.to_owned(), value.to_owned());
        let run = async |accessor: &Accessor<StoreData>| {
            component.weir_stream_state().call_put(accessor, key, value, None, None, None).await
        };
        self.store.run_concurrent(run).await?
    }

    async fn keys(&mut self) -> Result<Result<Vec<String>, Failure>> {
        let component = &self.component;
        let run = async |accessor: &Accessor<StoreData>| {
            component.weir_stream_state().call_keys(accessor, "session".to_owned(), String::new(), 100).await
        };
        self.store.run_concurrent(run).await?
    }
}

fn done<T>(result: Result<T, Failure>) -> Result<T> {
    result.map_err(|failure| format_err!("{failure:?}"))
}

fn fence(acquisition: Result<Acquisition, Failure>) -> Result<Fence> {
    match acquisition {
        Ok(Acquisition::Acquired(token)) => Ok(Fence { key: "session:x".to_owned(), token }),
        other => bail!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn instances_on_threads_append_to_one_channel() -> Result<()> {
    const INSTANCES: usize = 4;
    const EVENTS: usize = 25;
    let host = Host::new()?;
    let mut tasks = Vec::new();
    for instance in 0..INSTANCES {
        let host = host.clone();
        tasks.push(tokio::spawn(async move {
            let (mut component, mut cursors, began) = (host.instance().await?, Vec::new(), Instant::now());
            for event in 0..EVENTS {
                let data = format!("{instance}.{event}");
                let mut appended = component.append(&data, None).await?;
                // An instance that was suspended while it held the lock has written nothing.
                while let Err(Failure::Unavailable(_)) = appended
                    && began.elapsed() < PATIENCE
                {
                    appended = component.append(&data, None).await?;
                }
                let appended = done(appended)?;
                cursors.extend(appended.into_iter().map(|cursor| ((cursor.epoch, cursor.seq), data.clone())));
            }
            Ok::<_, Error>(cursors)
        }));
    }
    let mut returned = Vec::new();
    for task in tasks {
        returned.extend(task.await??);
    }
    returned.sort();
    // Another instance reads what those have left that are gone.
    let stored = done(host.instance().await?.read().await?)?;
    let stored: Vec<((u64, u64), String)> =
        stored.into_iter().map(|(cursor, data)| ((cursor.epoch, cursor.seq), data)).collect();
    assert_eq!(stored, returned);
    assert_eq!(stored.len(), INSTANCES * EVENTS);
    ensure!(stored.windows(2).all(|pair| pair[0].0.1 + 1 == pair[1].0.1), "{stored:?}");
    Ok(())
}

#[tokio::test]
async fn next_instance_has_the_state_and_fences_the_earlier_one() -> Result<()> {
    let host = Host::new()?;
    let mut earlier = host.instance().await?;
    let stale = fence(earlier.acquire("earlier").await?)?;
    ensure!(earlier.append("1", Some(stale.clone())).await?.is_ok());
    for id in ["c", "a", "b", "e", "d"] {
        ensure!(earlier.put(&format!("session:{id}"), b"state").await?.is_ok());
    }
    let mut later = host.instance().await?;
    let mut acquired = later.acquire("later").await?;
    // The lease of the earlier one lasts a millisecond.
    while let Ok(Acquisition::Held(_)) = acquired {
        acquired = later.acquire("later").await?;
    }
    let newest = fence(acquired)?;
    let refused = earlier.append("2", Some(stale)).await?;
    ensure!(matches!(refused, Err(Failure::Fenced)), "{refused:?}");
    ensure!(later.append("3", Some(newest)).await?.is_ok());
    let data: Vec<String> = done(later.read().await?)?.into_iter().map(|(_, data)| data).collect();
    assert_eq!(data, ["1", "3"]);
    let keys = done(later.keys().await?)?;
    assert_eq!(keys, ["session:a", "session:b", "session:c", "session:d", "session:e"]);
    Ok(())
}

#[tokio::test]
async fn failures_and_damage_are_failures_of_the_call() -> Result<()> {
    let host = Host::new()?;
    let mut instance = host.instance().await?;
    ensure!(instance.append("1", None).await?.is_ok());
    host.with(|shared| shared.is_failing = true);
    let failed = instance.append("2", None).await?;
    ensure!(matches!(failed, Err(Failure::Unavailable(_))), "{failed:?}");
    let failed = instance.read().await?;
    ensure!(matches!(failed, Err(Failure::Unavailable(_))), "{failed:?}");
    host.with(|shared| shared.is_failing = false);
    ensure!(instance.append("3", None).await?.is_ok());
    ensure!(instance.read().await?.is_ok_and(|events| events.len() == 2));
    host.with(|shared| {
        for value in shared.data.values_mut() {
            value.truncate(value.len() / 2);
        }
    });
    let damaged = instance.read().await?;
    ensure!(matches!(&damaged, Err(Failure::Other(reason)) if reason.contains("is damaged")), "{damaged:?}");
    let damaged = instance.append("4", None).await?;
    ensure!(matches!(&damaged, Err(Failure::Other(reason)) if reason.contains("is damaged")), "{damaged:?}");
    Ok(())
}
