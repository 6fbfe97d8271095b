//! The memory of subscribers, counted by the allocator.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::task::{Context, Waker};

use common::{memory, name, open};
use weir_core::channels::{Cursor, Delivery, Draft};
use weir_events::EventsConfig;

/// Bytes allocated and not freed.
static LIVE: AtomicIsize = AtomicIsize::new(0);

struct Counting;

// SAFETY: all calls are forwarded to the system's allocator; the count is only read.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn live() -> usize {
    LIVE.load(Ordering::Relaxed) as usize
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn idle_subscribers_are_cheap_and_events_are_shared() {
    const IDLE: usize = 10_000;
    const BUSY: usize = 1_000;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // No sweep must run between two measurements.
        let config = EventsConfig { channels_max: 2 * IDLE, sweep_ms: 3_600_000, ..memory() };
        let store = open(config).await;
        let mut context = Context::from_waker(Waker::noop());
        let mut batch = Vec::new();
        for one_channel in [true, false] {
            let mut subscriptions = Vec::with_capacity(IDLE);
            let before = live();
            for number in 0..IDLE {
                let channel = name(&format!("user:{:012}", if one_channel { 0 } else { number }));
                let mut subscription = store.follow(&channel, Cursor::START).await.unwrap();
                assert!(subscription.poll_batch(&mut context, &mut batch, 16, usize::MAX).is_pending());
                subscriptions.push(subscription);
            }
            let each = (live() - before) / IDLE + size_of_val(&subscriptions[0]);
            println!("one channel: {one_channel}: {each} bytes for an idle subscriber");
            assert!(each < 800, "an idle subscriber takes {each} bytes");
            drop(subscriptions);
            assert!(live() < before + 400_000, "subscribers leave {} bytes behind", live() - before);
        }

        let channel = name("workflow:busy");
        let mut subscriptions = Vec::with_capacity(BUSY);
        for _ in 0..BUSY {
            let mut subscription = store.follow(&channel, Cursor::START).await.unwrap();
            assert!(subscription.poll_batch(&mut context, &mut batch, 16, usize::MAX).is_pending());
            subscriptions.push(subscription);
        }
        let before = live();
        store.append(&channel, vec![Draft::new("e", "x".repeat(100_000))]).await.unwrap();
        let waiting = live() - before;
        println!("an event of 100,000 bytes that waits for {BUSY} subscribers: {waiting} bytes");
        assert!(waiting < 100_000 + BUSY * 250, "{waiting} bytes");
        for subscription in &mut subscriptions {
            assert!(matches!(subscription.try_next(), Some(Delivery::Event { .. })));
        }
    });
}
