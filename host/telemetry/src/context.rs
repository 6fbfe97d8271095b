//! Trace contexts (W3C Trace Context, level 1).

use std::fmt;
use std::str::FromStr;

/// A span of a trace, in this process or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanContext {
    pub(crate) trace_id: u128,
    pub(crate) span_id: u64,
    pub(crate) is_sampled: bool,
}

/// A header is not a trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a trace context")]
pub struct ContextError;

impl SpanContext {
    /// Whether the trace is exported.
    pub fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// A span in the trace of its parent, or of a new trace.
    pub(crate) fn new(parent: Option<&Self>) -> Self {
        let mut random = [0; 24];
        getrandom::fill(&mut random).expect("the system has random numbers");
        let [trace @ .., _, _, _, _, _, _, _, _] = random;
        let span = u64::from_be_bytes(std::array::from_fn(|at| random[16 + at]));
        Self {
            trace_id: parent.map_or(u128::from_be_bytes(trace).max(1), |parent| parent.trace_id),
            // Zero is no id.
            span_id: span.max(1),
            is_sampled: true,
        }
    }
}

impl fmt::Display for SpanContext {
    /// The value of `traceparent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.is_sampled))
    }
}

impl FromStr for SpanContext {
    type Err = ContextError;

    /// Reads a value of `traceparent`. Versions after 00 may have more fields.
    fn from_str(text: &str) -> Result<Self, ContextError> {
        let mut fields = text.trim().split('-');
        let mut next = |digits: usize| {
            let field = fields.next().filter(|field| field.len() == digits)?;
            let is_hex = field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            is_hex.then(|| u128::from_str_radix(field, 16).ok())?
        };
        let (version, trace_id, span_id, flags) = (next(2), next(32), next(16), next(2));
        let (Some(version), Some(trace_id), Some(span_id), Some(flags)) = (version, trace_id, span_id, flags) else {
            return Err(ContextError);
        };
        let has_more = fields.next().is_some();
        let span_id = u64::try_from(span_id).map_err(|_| ContextError)?;
        if version == 0xff || (version == 0 && has_more) || trace_id == 0 || span_id == 0 {
            return Err(ContextError);
        }
        Ok(Self { trace_id, span_id, is_sampled: flags & 1 == 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_read_as_it_is_written() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context: SpanContext = text.parse().unwrap();
        assert_eq!(context.to_string(), text);
        let child = SpanContext::new(Some(&context));
        assert_eq!(child.trace_id, context.trace_id);
        assert_ne!(child.span_id, context.span_id);
        assert_eq!(child.to_string().parse(), Ok(child));
        assert!(!text.replace("-01", "-00").parse::<SpanContext>().unwrap().is_sampled);
        assert!(text.replace("00-0af", "01-0af").replace("331-01", "331-01-more").parse::<SpanContext>().is_ok());
    }

    #[test]
    fn invalid_headers_are_refused() {
        for text in [
            "",
            "00",
            "00-1",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(text.parse::<SpanContext>(), Err(ContextError), "{text}");
        }
    }
}
