//! Enums whose variants have a name in configurations, metrics and events.

/// Declares an enum with `ALL`, `name`, `from_name` and `Display`, given the name of each variant.
macro_rules! named {
    (
        $(#[$attribute:meta])*
        pub enum $enum:ident {
            $( $(#[$variant_attribute:meta])* $variant:ident = $name:literal ),+ $(,)?
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $enum {
            $( $(#[$variant_attribute])* $variant ),+
        }

        impl $enum {
            /// Every variant, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in configurations, metrics and events.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }

            /// The variant with exactly this name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $enum {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.pad(self.name())
            }
        }
    };
}

pub(crate) use named;
