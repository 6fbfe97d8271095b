//! How much memory a session holds: what the allocator says, less what of the transcript it keeps.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use weir_core::transcripts::{Chunk, RoutingConfig, Session, SessionConfig, SessionRules};

/// Counts the bytes of each thread, so that tests beside each other do not mix.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

fn add(bytes: isize) {
    // A thread that ends frees after its counter is gone.
    let _ = LIVE.try_with(|live| live.set(live.get() + bytes));
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as isize);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        add(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The contract: an idle session holds less than this, besides its window.
const IDLE_BYTES_MAX: usize = 4096;

/// Bytes of a session after a long call, and how many of them are of the transcript.
fn held(config: SessionConfig) -> (usize, usize) {
    const SESSIONS: usize = 100;
    let rules = SessionRules::new(config).expect("a good configuration");
    let mut sessions = Vec::with_capacity(SESSIONS);
    let before = LIVE.get();
    for _ in 0..SESSIONS {
        let mut session = Session::new(rules.clone(), 0);
        for at in 0..1000 {
            let text = ["I'll check the price with my manager", "are you leaving?", "the sky was grey today"][at % 3];
            let speaker_id = Some(format!("speaker {}", at % 7));
            let (start, end) = (at as f64, at as f64 + 0.5);
            session.handle_chunk(0, None, Chunk { start, end, text: text.to_owned(), speaker_id }).expect("in order");
            while session.poll_event(0).is_some() {}
        }
        sessions.push(session);
    }
    let held = usize::try_from(LIVE.get() - before).expect("more than before") + SESSIONS * size_of::<Session>();
    let kept: usize = sessions.iter().map(Session::kept_bytes).sum();
    (held / SESSIONS, kept / SESSIONS)
}

#[test]
fn idle_session_uses_little_memory_beyond_its_window() {
    let (held_bytes, kept_bytes) = held(SessionConfig::default());
    println!("a session holds {held_bytes} bytes, {kept_bytes} of them of the transcript");
    assert!(kept_bytes > 2000, "the window is full: {kept_bytes}");
    assert!(held_bytes - kept_bytes < IDLE_BYTES_MAX, "{held_bytes} bytes, of which the transcript has {kept_bytes}");
}

#[test]
fn queues_use_little_memory_beyond_their_segments() {
    let (held_bytes, kept_bytes) = held(SessionConfig { routing: RoutingConfig::queued(), ..SessionConfig::default() });
    println!("a session holds {held_bytes} bytes, {kept_bytes} of them of the transcript");
    assert!(kept_bytes > 20_000, "the queues are full: {kept_bytes}");
    assert!(held_bytes - kept_bytes < IDLE_BYTES_MAX, "{held_bytes} bytes, of which the transcript has {kept_bytes}");
}
