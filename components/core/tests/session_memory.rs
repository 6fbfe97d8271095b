//! The memory of a session besides its transcript, measured by a counting allocator.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use weir_core::transcripts::{Chunk, RoutingConfig, Session, SessionConfig, SessionRules};

/// Counts the allocated bytes of each thread, so concurrent tests do not interfere.
struct Counting;

thread_local! {
    static ALLOCATED: Cell<isize> = const { Cell::new(0) };
}

fn add(bytes: isize) {
    // A thread can free memory after the destructor of its counter.
    let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + bytes));
}

// SAFETY: all calls are forwarded to the system's allocator.
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

/// The contract: an idle session uses less than this, besides its transcript.
const IDLE_BYTES_MAX: usize = 4096;

/// The bytes of a session after a long call, in total and of the transcript.
fn measure(config: SessionConfig) -> (usize, usize) {
    const SESSIONS: usize = 100;
    let rules = SessionRules::new(config).expect("a good configuration");
    let mut sessions = Vec::with_capacity(SESSIONS);
    let before = ALLOCATED.get();
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
    let total = usize::try_from(ALLOCATED.get() - before).expect("more than before") + SESSIONS * size_of::<Session>();
    let transcript: usize = sessions.iter().map(Session::transcript_bytes).sum();
    (total / SESSIONS, transcript / SESSIONS)
}

#[test]
fn idle_session_uses_little_memory_beyond_its_window() {
    let (session_bytes, transcript_bytes) = measure(SessionConfig::default());
    println!("a session holds {session_bytes} bytes, {transcript_bytes} of them of the transcript");
    assert!(transcript_bytes > 2000, "the window is full: {transcript_bytes}");
    assert!(
        session_bytes - transcript_bytes < IDLE_BYTES_MAX,
        "{session_bytes} bytes, of which the transcript has {transcript_bytes}"
    );
}

#[test]
fn queues_use_little_memory_beyond_their_segments() {
    let (session_bytes, transcript_bytes) =
        measure(SessionConfig { routing: RoutingConfig::queued(), ..SessionConfig::default() });
    println!("a session holds {session_bytes} bytes, {transcript_bytes} of them of the transcript");
    assert!(transcript_bytes > 20_000, "the queues are full: {transcript_bytes}");
    assert!(
        session_bytes - transcript_bytes < IDLE_BYTES_MAX,
        "{session_bytes} bytes, of which the transcript has {transcript_bytes}"
    );
}
