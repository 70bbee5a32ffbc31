//! Fixed little-endian layouts: one declaration gives the type, its bytes and the table that
//! `docs/` is checked against.

/// One field of a fixed layout, as written in the format documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldLayout {
    /// Name in code and document.
    pub name: &'static str,
    /// Bytes from the start of the structure.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

/// Declares a structure without padding whose memory is its wire or disk form.
macro_rules! fixed_layout {
    (
        $(#[$meta:meta])*
        struct $name:ident {
            $($(#[$field_meta:meta])* $field:ident: $ty:ty,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone,
            Copy,
            zerocopy::FromBytes,
            zerocopy::IntoBytes,
            zerocopy::KnownLayout,
            zerocopy::Immutable,
            zerocopy::Unaligned,
        )]
        #[repr(C)]
        pub(crate) struct $name {
            $($(#[$field_meta])* $field: $ty,)+
        }

        impl $name {
            /// Its fields in order, for the format document.
            pub(crate) const FIELDS: &'static [$crate::types::fixed::FieldLayout] = &[
                $($crate::types::fixed::FieldLayout {
                    name: stringify!($field),
                    offset: core::mem::offset_of!($name, $field),
                    len: core::mem::size_of::<$ty>(),
                }),+
            ];
        }
    };
}

pub(crate) use fixed_layout;
