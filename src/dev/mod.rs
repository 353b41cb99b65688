//! What the development service is seeded with: a `.env` file, read and sorted out.

pub mod dotenv;
pub mod seed;
