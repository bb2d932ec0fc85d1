"""Schedules: calendars, and the tasks that they make."""
