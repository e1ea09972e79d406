#pragma once
// In cuda_on_host.h, which every kernel file includes first.
